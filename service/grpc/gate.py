"""Holds RPCs while the server closes around them: those that come, and others' answers."""

import asyncio
import time
from typing import Final

from service.call import Clock

POLL_S: Final = 0.01


class Gate:
    """Open, but for a moment in the life of a server. Belongs to the server's event loop."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._released = asyncio.Event()
        self._released.set()
        self._last_arrival = 0.0
        # Set once the server begins to close: streams end where they are.
        self.leaving = asyncio.Event()

    async def come_in(self) -> None:
        """An RPC has arrived; returns once it may go on."""
        self._last_arrival = self._clock()
        await self.pass_by()

    async def pass_by(self) -> None:
        """Return once answers may be given."""
        if not self._released.is_set():
            await self._released.wait()

    async def hold(self, quiet_s: float, limit_s: float) -> None:
        """Hold everybody, and return when nobody has come for so long: all wait for an answer."""
        self._released.clear()
        self.leaving.set()
        began = now = self._clock()
        while now - max(began, self._last_arrival) < quiet_s and now - began < limit_s:
            await asyncio.sleep(POLL_S)
            now = self._clock()

    def release(self) -> None:
        """Let everybody go on."""
        self._released.set()
