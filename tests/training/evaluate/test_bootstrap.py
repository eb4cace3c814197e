"""Intervals: they hold the value, follow the seed, shrink to nothing without doubt, are paired."""

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from training.evaluate.bootstrap import Interval, bootstrap


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """One number an example."""

    mark_S: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.mark_S)

    def mean(self, weights_RS: NDArray[np.float64]) -> NDArray[np.float64]:
        """Weighted mean for each row of weights."""
        return np.asarray(weights_RS @ self.mark_S / weights_RS.sum(1))


@pytest.fixture
def marks() -> Marks:
    """Two hundred marks around 5, half of them 4 and half 6."""
    return Marks(mark_S=np.tile([4.0, 6.0], 100))


def test_it_is_drawn_example_by_example(marks: Marks) -> None:
    """Equal to the loop that draws, counts and scores one resample after another."""
    rng = np.random.default_rng(3)
    values = []
    for _ in range(1000):
        drawn = rng.integers(len(marks), size=len(marks))
        values.append(marks.mark_S[drawn].mean())
    low, high = np.percentile(values, [2.5, 97.5])
    interval = bootstrap(Marks.mean, marks, seed=3)
    assert [interval.low, interval.high] == pytest.approx([low, high])


def test_it_follows_the_seed(marks: Marks) -> None:
    uneven = Marks(mark_S=np.random.default_rng(0).normal(size=50))
    assert bootstrap(Marks.mean, uneven) == bootstrap(Marks.mean, uneven)
    assert bootstrap(Marks.mean, uneven) != bootstrap(Marks.mean, uneven, seed=1)
    # Sets of other sizes come between and change nothing.
    first = bootstrap(Marks.mean, uneven)
    bootstrap(Marks.mean, marks)
    assert bootstrap(Marks.mean, uneven) == first


def test_differences_are_taken_example_by_example(marks: Marks) -> None:
    assert bootstrap(Marks.mean, marks, marks) == Interval(value=0.0, low=0.0, high=0.0)
    worse = Marks(mark_S=marks.mark_S - 1)
    gain = bootstrap(Marks.mean, marks, worse)
    # One mark less in every example, whichever are drawn.
    assert (gain.value, gain.low, gain.high) == pytest.approx((1.0, 1.0, 1.0))
