"""Waiting for several things at once; after an error or a cancellation none is left running."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from service.machine import work_in_background

T = TypeVar("T")
U = TypeVar("U")
# Work that is cut at every `yield`, so that it can stop and other work can run in between.
Steps = Generator[None, None, T]
# Long enough that handing it to a thread costs little, short enough that other work hardly waits.
SLICE_S: Final = 0.05


def run_slice(steps: Steps[T], slice_s: float = SLICE_S) -> tuple[T] | None:
    """Run steps for a slice of time; the result once there are no more, else None."""
    until = time.monotonic() + slice_s
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return (end.value,)
        if time.monotonic() >= until:
            return None


async def wait_all(awaitables: Iterable[Awaitable[T]]) -> list[T]:
    """Wait for all, in order; after an error or a cancellation cancel the others.

    Raises:
        Exception: The first that any of them raised.
    """
    futures = [asyncio.ensure_future(awaitable) for awaitable in awaitables]
    try:
        return await asyncio.gather(*futures)
    except BaseException:
        cancel_all(futures)
        raise
    finally:
        del futures  # A failed future and the frames of its error would form a cycle.


async def wait_both(first: Awaitable[T], second: Awaitable[U]) -> tuple[T, U]:
    """`wait_all` for two awaitables of different types."""
    both: Iterable[Awaitable[Any]] = (first, second)
    found = await wait_all(both)
    return found[0], found[1]


def cancel_all(futures: Iterable[Any]) -> None:
    """Cancel all. A loop in the caller would keep its last future in the caller's frame."""
    for future in futures:
        future.cancel()


class Pool(ThreadPoolExecutor):
    """Threads for CPU work: headers, decoding, parsing, masks."""

    def __init__(self, num_threads: int) -> None:
        super().__init__(num_threads, "pool", initializer=work_in_background)
        self.num_threads = num_threads


async def run_in_pool(pool: Pool, jobs: Iterable[Callable[[], T]]) -> list[T]:
    """Run jobs in threads, in order; when this returns or raises, none of them is running.

    Raises:
        Exception: That of the first job that failed. Jobs that have not begun are cancelled.
    """
    futures = [pool.submit(job) for job in jobs]
    try:
        return await asyncio.gather(*map(asyncio.wrap_future, futures))
    except BaseException as error:
        cancel_all(futures)
        await asyncio.gather(*map(asyncio.wrap_future, futures), return_exceptions=True)
        failed = [f for f in futures if not f.cancelled() and f.exception() is not None]
        if isinstance(error, Exception) and failed:
            failed[0].result()
        raise
    finally:
        # A failed one leads to this frame by its traceback.
        futures, failed = [], []
