"""Times a function repeatedly for some seconds, after a warm-up."""

import time
from collections.abc import Callable
from dataclasses import dataclass

WARM_UP_RUNS = 3
MIN_RUNS = 5


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds per run."""

    median_s: float
    p95_s: float
    num_runs: int


def timed(run: Callable[[], object], seconds: float) -> Timing:
    """Time a function that returns when its work is done.

    Args:
        run: Function to time.
        seconds: Approximate duration without the warm-up; at least `MIN_RUNS` runs.
    """
    for _ in range(WARM_UP_RUNS):
        run()
    taken: list[float] = []
    until = time.perf_counter() + seconds
    while len(taken) < MIN_RUNS or time.perf_counter() < until:
        began = time.perf_counter()
        run()
        taken.append(time.perf_counter() - began)
    taken.sort()
    return Timing(taken[len(taken) // 2], taken[int(0.95 * (len(taken) - 1))], len(taken))
