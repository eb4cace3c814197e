"""How fast work gets done, measured at the exit, and so how long what is inside needs."""

import math
from typing import Final

MEMORY_S: Final = 3.0


class Pace:
    """Cost that left in each second in which something was inside. Not thread-safe.

    Whatever holds work up is in it: the device, decoding, the network. Times are monotonic seconds.
    """

    def __init__(self) -> None:
        self._cost = 0.0
        self._busy_s = 0.0
        self._since = 0.0

    def begin(self, now: float) -> None:
        """Somebody came in while nobody was inside."""
        self._since = now

    def leave(self, cost: int, now: float) -> None:
        """Work of this cost left."""
        passed_s = now - self._since
        self._since = now
        kept = math.exp(-passed_s / MEMORY_S)
        self._cost = self._cost * kept + cost
        self._busy_s = self._busy_s * kept + passed_s

    def seconds(self, cost: int) -> float | None:
        """How long work of this cost needs to leave; None where nothing was measured yet."""
        if self._cost <= 0 or self._busy_s <= 0:
            return None
        return cost * self._busy_s / self._cost
