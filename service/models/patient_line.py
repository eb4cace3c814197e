"""Callers who wait for room in a model instead of being refused: the requests of streams.

They come in by turns, and have half of the room at the most: the other half is for those who cannot
wait. Whoever cannot wait takes nothing that the first in line is about to get.
"""

import asyncio
from collections import deque


class Waiter:
    """One who waits; belongs to the event loop that makes it."""

    __slots__ = ("_loop", "_woken", "cost", "is_in")

    def __init__(self, cost: int) -> None:
        self.cost = cost
        self.is_in = False
        self._loop = asyncio.get_running_loop()
        self._woken: asyncio.Future[None] = self._loop.create_future()

    def let_in(self) -> None:
        """Say so, from any thread."""
        self.is_in = True
        self._loop.call_soon_threadsafe(self._wake)

    async def wait(self, limit_s: float) -> None:
        """Return once it is in.

        Raises:
            TimeoutError: That takes longer than the limit.
        """
        if not self.is_in:
            async with asyncio.timeout(limit_s):
                await self._woken

    def _wake(self) -> None:
        if not self._woken.done():
            self._woken.set_result(None)


class PatientLine:
    """Who waits, and what those who have waited take up by now. Not thread-safe."""

    def __init__(self, max_cost: int) -> None:
        self._max_cost = max_cost // 2
        self._cost = 0
        self._waiting: deque[Waiter] = deque()

    @property
    def is_next(self) -> bool:
        """Whether the next free room is for the first in line."""
        return bool(self._waiting) and self._fits(self._waiting[0].cost)

    def join(self, waiter: Waiter) -> None:
        """Wait behind everybody else."""
        self._waiting.append(waiter)

    def give_up(self, waiter: Waiter) -> None:
        """Wait no more."""
        self._waiting.remove(waiter)

    def come_in(self, free: int) -> Waiter | None:
        """The first in line where there is room for it, which it then takes; None where not."""
        if not self.is_next or self._waiting[0].cost > free:
            return None
        waiter = self._waiting.popleft()
        self._cost += waiter.cost
        waiter.let_in()
        return waiter

    def resize(self, difference: int) -> None:
        """One who is in takes up so much more, or less; all of it when it leaves."""
        self._cost += difference

    def _fits(self, cost: int) -> bool:
        return self._cost == 0 or self._cost + cost <= self._max_cost
