"""Times a function again and again for some seconds, after it has run a few times."""

import time
from collections.abc import Callable
from dataclasses import dataclass

WARM_UP_RUNS = 3
MIN_RUNS = 5


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one run."""

    median_s: float
    p95_s: float
    num_runs: int


def timed(run: Callable[[], object], seconds: float) -> Timing:
    """Time a function that returns when its work is done.

    Args:
        run: What is timed.
        seconds: About how long, warming up left out; at least `MIN_RUNS` runs.
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
