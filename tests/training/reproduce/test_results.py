"""Scores over seeds: means, intervals, verdicts, paired differences."""

import math
from collections.abc import Callable

import pytest

from training.reproduce.plan import RECIPE, PlannedRun, ReproductionPlan
from training.reproduce.results import Cell, Results, seed_mean

Finish = Callable[[PlannedRun, float], None]
SEEN = Cell(scenes="seen", row="patches", metric="which")


@pytest.fixture
def runs(plan: ReproductionPlan, finish: Finish) -> list[PlannedRun]:
    """Three seeds of iBOT++, which hits 60, 62 and 64 % of the pixels, and two of iBOT at 50 %."""
    runs = plan.all_runs([0, 1, 2])
    for run in runs:
        if run.variant == RECIPE:
            finish(run, 0.6 + 0.02 * run.seed)
        elif run.variant == "ibot" and run.seed < 2:
            finish(run, 0.5)
    return runs


def test_levels_are_over_seeds_and_differences_over_seeds_with_both(runs: list[PlannedRun]) -> None:
    results = Results(runs)
    level = results.level(RECIPE, SEEN)
    assert results.seeds(RECIPE) == [0, 1, 2]
    assert len(level.values) == 3
    assert level.mean == pytest.approx(62.0, abs=2.0)
    found = results.difference(RECIPE, "ibot", SEEN)
    assert results.seeds(RECIPE, "ibot") == [0, 1]
    own, other = results.level(RECIPE, SEEN), results.level("ibot", SEEN)
    expected = [own.values[seed] - other.values[seed] for seed in (0, 1)]
    assert found.seeds.values == pytest.approx(expected)
    assert found.low <= found.seeds.mean <= found.high


def test_intervals_depend_on_the_number_of_seeds() -> None:
    found = seed_mean([1.0, 2.0, 6.0])
    assert found.mean == pytest.approx(3.0)
    assert found.spread == pytest.approx(math.sqrt(7.0))
    # t of 2 degrees of freedom is 4.303
    assert found.half_width == pytest.approx(4.303 * math.sqrt(7.0 / 3.0))
    assert (found.low + found.high) / 2 == pytest.approx(3.0)
    one = seed_mean([2.5])
    assert one.mean == 2.5
    assert math.isnan(one.low)
    many = seed_mean([float(i % 2) for i in range(100)])
    assert many.half_width == pytest.approx(1.960 * many.spread / 10)
