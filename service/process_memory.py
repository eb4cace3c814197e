"""Process-wide limits on what libraries keep: BLAS threads and freed memory."""

import asyncio
import ctypes
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

# Import this before NumPy: its matrix products then run in the thread that asks for them.
#
# Left alone, OpenBLAS spreads each over all processors and lets the helpers spin: masks then cost
# up to twice the CPU time, taken from the lanes. A thread of the pool for each request spreads
# better.

VARIABLE: Final = "OPENBLAS_NUM_THREADS"
os.environ.setdefault(VARIABLE, "1")


# Keeps resident memory near what is in use: gives free pages back while the server works.
#
# glibc keeps what was freed in arenas of each thread. After an hour of large and broken images a
# process held twice and more of what it used, none of it leaked: all went back when it was asked
# for.

INTERVAL_S: Final = 5.0
# How far resident memory may rise over what the last trim left.
SLACK: Final = 1.25
STATM: Final = Path("/proc/self/statm")


def resident_bytes() -> int:
    """Memory of this process that is in RAM; 0 where the system does not tell."""
    try:
        num_pages = int(STATM.read_text(encoding="ascii").split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    return num_pages * os.sysconf("SC_PAGESIZE")


def trim() -> None:
    """Hand every free page back; takes milliseconds, in which Python's lock is free."""
    with suppress(AttributeError):  # another C library, such as musl, keeps less
        ctypes.CDLL(None).malloc_trim(0)


@asynccontextmanager
async def trimming_memory(
    interval_s: float = INTERVAL_S,
    resident: Callable[[], int] = resident_bytes,
    give_back: Callable[[], None] = trim,
) -> AsyncIterator[None]:
    """Look now and then while the block runs, and trim where memory has risen."""
    task = asyncio.ensure_future(_watch(interval_s, resident, give_back))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _watch(
    interval_s: float, resident: Callable[[], int], give_back: Callable[[], None]
) -> None:
    floor = resident()
    while True:
        await asyncio.sleep(interval_s)
        if resident() > floor * SLACK:
            await asyncio.to_thread(give_back)
            floor = resident()
