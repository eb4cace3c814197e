"""Results over seeds: means, intervals, paired differences."""

import math
from pathlib import Path

import pytest

from tests.training.reproduce.conftest import Finish
from training.reproduce.plan import IBOT, IBOT_PP, RECIPE, START, student_of
from training.reproduce.results import Results, last_loss, score, seed_mean


def test_intervals_depend_on_the_number_of_seeds() -> None:
    found = seed_mean([1.0, 2.0, 6.0])
    assert found.mean == pytest.approx(3.0)
    # t of 2 degrees of freedom is 4.303
    assert found.half_width == pytest.approx(4.303 * math.sqrt(7.0 / 3.0))
    assert (found.low + found.high) / 2 == pytest.approx(3.0)
    assert math.isnan(seed_mean([2.5]).low)
    many = seed_mean([float(i % 2) for i in range(100)])
    spread = math.sqrt(25 / 99)
    assert many.half_width == pytest.approx(1.960 * spread / 10)
    with pytest.raises(ValueError, match="at least one seed"):
        seed_mean([])


def test_differences_are_paired_over_the_seeds_that_have_both(
    results: Path, finish: Finish
) -> None:
    for seed, (better, worse) in enumerate([(10.0, 9.0), (30.0, 28.0), (50.0, None)]):
        finish(IBOT_PP, seed, patches=better)
        if worse is not None:
            finish(IBOT, seed, patches=worse, visible=4.0)
    found = Results(results)
    assert found.seeds(IBOT_PP) == [0, 1, 2]
    assert found.seeds(IBOT_PP, IBOT) == [0, 1]
    assert found.level(IBOT_PP, score("patches")).mean == pytest.approx(30.0)
    difference = found.difference(IBOT_PP, IBOT, score("patches"))
    assert difference.values == pytest.approx((1.0, 2.0))
    assert found.difference(IBOT_PP, IBOT, last_loss("patch_visible")).mean == pytest.approx(-1.0)
    within = found.within(IBOT, score("painted CLS1"), score("patches"))
    assert within.values == pytest.approx((26.0, 7.0))


def test_results_of_different_settings_are_not_mixed(results: Path, finish: Finish) -> None:
    finish(IBOT, 0, patches=1.0)
    finish(IBOT, 1, patches=1.0, settings="other")
    with pytest.raises(ValueError, match="different settings"):
        Results(results)


def test_results_of_a_seed_that_come_from_different_weights_are_not_compared(
    results: Path, finish: Finish
) -> None:
    finish(IBOT, 0, patches=1.0, origin={"weights": "t", "built_on": {START: "a"}})
    student = student_of(IBOT, RECIPE)
    finish(student, 0, patches=1.0, origin={"weights": "s", "built_on": {START: "a", IBOT: "t"}})
    finish(IBOT, 1, patches=1.0, origin={"weights": "u", "built_on": {START: "b"}})
    finish(IBOT, 2, patches=1.0)  # kept from before, as a whole seed
    assert Results(results).seeds(IBOT) == [0, 1, 2]
    for mixed in ({"weights": "v", "built_on": {START: "b"}}, {}):
        finish(IBOT_PP, 0, patches=1.0, origin=mixed)
        with pytest.raises(ValueError, match="seed 0 come from different weights"):
            Results(results)
    finish(IBOT_PP, 0, patches=1.0, origin={"weights": "v", "built_on": {START: "a"}})
    finish(student, 0, patches=1.0, origin={"weights": "s", "built_on": {START: "a", IBOT: "x"}})
    with pytest.raises(ValueError, match="different weights of 'ibot'"):
        Results(results)
