"""Seconds that a step takes, and how many of them pass in waiting for its data."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Pace:
    """Averages over the steps since it was last asked; a step is one `waiting`.

    Args:
        clock: Seconds, from anywhere.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self.restart()

    def restart(self) -> None:
        """Leave out what has passed since the last step."""
        self._began_s, self._waited_s, self._steps = self._clock(), 0.0, 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count what happens inside as waiting for one step's data."""
        before_s = self._clock()
        yield
        self._waited_s += self._clock() - before_s
        self._steps += 1

    def per_step(self) -> dict[str, float]:
        """Mean seconds a step, "step_s", of which "wait_s" were waiting; starts anew."""
        steps, waited_s = max(1, self._steps), self._waited_s
        total_s = self._clock() - self._began_s
        self.restart()
        return {"step_s": round(total_s / steps, 4), "wait_s": round(waited_s / steps, 4)}
