"""Intervals equal those of a plain loop, follow the seed, and are paired."""

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from model.scores.bootstrap import Interval, bootstrap


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """One number an example."""

    mark_S: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.mark_S)

    def mean(self, weights_RS: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(weights_RS @ self.mark_S / weights_RS.sum(1))


MARKS = Marks(mark_S=np.tile([4.0, 6.0], 100))


def test_an_interval_equals_that_of_a_plain_loop() -> None:
    rng, values = np.random.default_rng(3), []
    for _ in range(1000):
        drawn = rng.integers(len(MARKS), size=len(MARKS))
        values.append(MARKS.mark_S[drawn].mean())
    interval = bootstrap(Marks.mean, MARKS, seed=3)
    assert [interval.low, interval.high] == pytest.approx(np.percentile(values, [2.5, 97.5]))
    assert bootstrap(Marks.mean, MARKS, seed=3) == interval != bootstrap(Marks.mean, MARKS)


def test_differences_are_taken_example_by_example() -> None:
    assert bootstrap(Marks.mean, MARKS, MARKS) == Interval(value=0.0, low=0.0, high=0.0)
    gain = bootstrap(Marks.mean, MARKS, Marks(mark_S=MARKS.mark_S - 1))
    # One mark less in every example, whichever are drawn.
    assert (gain.value, gain.low, gain.high) == pytest.approx((1.0, 1.0, 1.0))
