"""How late an event loop runs what is due: what every request on it waits besides its own work."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final

INTERVAL_S: Final = 0.5


@asynccontextmanager
async def watching_lag(observe: Callable[[float], None]) -> AsyncIterator[None]:
    """Tell how late the running loop is, in seconds, twice a second while the block runs."""
    task = asyncio.ensure_future(_watch(observe))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _watch(observe: Callable[[float], None]) -> None:
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + INTERVAL_S
        await asyncio.sleep(INTERVAL_S)
        observe(max(0.0, loop.time() - due))
