"""Values with 95 % intervals by resampling the examples; independent of the task.

Shapes: R resamples, S examples (scenes, images or queries).
"""

from collections.abc import Callable, Sized
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Counts = TypeVar("Counts", bound=Sized)

_NUM_RESAMPLES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


@lru_cache(maxsize=4)
def _resamples(num_examples: int, seed: int) -> NDArray[np.float64]:
    """How often each example is drawn in each resample: float64 [R, S], every row sums to S."""
    rng = np.random.default_rng(seed)
    drawn_RS = rng.integers(num_examples, size=(_NUM_RESAMPLES, num_examples))
    rows = [np.bincount(drawn_S, minlength=num_examples) for drawn_S in drawn_RS]
    weights_RS = np.stack(rows).astype(np.float64)
    weights_RS.flags.writeable = False  # all callers share it
    return weights_RS


def bootstrap(
    metric: Callable[[Counts, NDArray[np.float64]], NDArray[np.float64]],
    counts: Counts,
    other: Counts | None = None,
    *,
    seed: int = 0,
) -> Interval:
    """Interval of a metric, or of its difference to another model's on the same examples.

    It covers the choice of examples only, not the training seed.

    Args:
        metric: Values [R] of counts whose examples are weighted by each row of weights [R, S].
        counts: Counts of a model by example; its length is S.
        other: Counts of the model whose value is taken off, in the same order of examples.
        seed: Seed of the resamples; sets of equal size and seed have equal resamples.
    """

    def values(weights_RS: NDArray[np.float64]) -> NDArray[np.float64]:
        values_R = metric(counts, weights_RS)
        return values_R if other is None else values_R - metric(other, weights_RS)

    num_examples = len(counts)
    low, high = np.percentile(values(_resamples(num_examples, seed)), [2.5, 97.5])
    value = values(np.ones((1, num_examples)))[0]
    return Interval(value=float(value), low=float(low), high=float(high))
