"""Means, t-intervals and verdicts over a few seeds, against values worked out by hand."""

import math

import pytest

from training.reproduce.results import Verdict, seed_mean, verdict


def test_three_seeds_by_hand() -> None:
    found = seed_mean([1.0, 2.0, 6.0])
    assert found.mean == pytest.approx(3.0)
    assert found.spread == pytest.approx(math.sqrt(7.0))
    # t of 2 degrees of freedom is 4.303
    assert found.half_width == pytest.approx(4.303 * math.sqrt(7.0 / 3.0))
    assert (found.low + found.high) / 2 == pytest.approx(3.0)


def test_one_seed_has_no_interval() -> None:
    found = seed_mean([2.5])
    assert found.mean == 2.5
    assert math.isnan(found.spread)
    assert math.isnan(found.low)


def test_many_seeds_use_the_normal_point() -> None:
    values = [float(i % 2) for i in range(100)]
    found = seed_mean(values)
    assert found.half_width == pytest.approx(1.960 * found.spread / 10)


def test_no_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one seed"):
        seed_mean([])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((2.0, 2.1, 1.9), "yes"),
        ((0.1, 4.0, 9.0), "in sign only"),
        ((-2.0, -2.1, -1.9), "the opposite"),
        ((-0.1, 4.0, 9.0), "no"),
        ((3.0,), "no"),
    ],
)
def test_verdicts(values: tuple[float, ...], expected: Verdict) -> None:
    assert verdict(seed_mean(values)) == expected
