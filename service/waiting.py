"""Waiting for several things at once; after an error or a cancellation none is left running."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
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


class Settled:
    """Wakes a coroutine once: when all futures are done, or when one has failed.

    `asyncio.wrap_future` would wake the event loop for each of them. Any thread may add futures
    while one that was added before is not done.
    """

    def __init__(self, *, heeds_errors: bool = True) -> None:
        self._loop = asyncio.get_running_loop()
        self._woken = self._loop.create_future()
        self._heeds_errors = heeds_errors
        self._num_pending, self._lock = 0, threading.Lock()
        self._is_over = self._is_awaited = False

    def add(self, futures: Sequence[Future[Any]]) -> None:
        """Wait for these too."""
        with self._lock:
            self._num_pending += len(futures)
        for future in futures:
            future.add_done_callback(self._on_done)

    async def wait(self) -> None:
        """Return when all are done, or when one has failed; at once if there are none."""
        with self._lock:
            self._is_awaited = self._num_pending > 0 and not self._is_over
        if self._is_awaited:
            await self._woken

    def _on_done(self, future: Future[Any]) -> None:
        has_failed = self._heeds_errors and error_of(future) is not None
        with self._lock:
            self._num_pending -= 1
            self._is_over |= has_failed
            wakes = self._is_awaited and (has_failed or self._num_pending == 0)
        if wakes:
            with suppress(RuntimeError):  # the event loop was closed, and the coroutine with it
                self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        if not self._woken.done():
            self._woken.set_result(None)


def error_of(future: Future[Any]) -> BaseException | None:
    """Why a future has failed, if it has; does not wait."""
    return future.exception() if future.done() and not future.cancelled() else None


async def wait_settled(futures: Sequence[Future[Any]], *, heeds_errors: bool = True) -> None:
    """`Settled` for futures that are all known."""
    settled = Settled(heeds_errors=heeds_errors)
    settled.add(futures)
    await settled.wait()


async def stop(futures: Sequence[Future[Any]]) -> None:
    """Cancel jobs of the pool; when this returns none is running."""
    cancel_all(futures)
    await wait_settled(futures, heeds_errors=False)


async def run_in_pool(pool: Pool, jobs: Iterable[Callable[[], T]]) -> list[T]:
    """Run jobs in threads, in order; when this returns or raises, none of them is running.

    Raises:
        Exception: That of the first job that failed. Jobs that have not begun are cancelled.
    """
    futures = [pool.submit(job) for job in jobs]
    try:
        return await results_of(futures)
    except asyncio.CancelledError:
        await stop(futures)
        raise
    finally:
        futures = []  # a failed one leads to this frame by its traceback


async def results_of(futures: Sequence[Future[T]]) -> list[T]:
    """The results of jobs, in order; after an error none of them is running.

    Raises:
        Exception: That of the first job that failed. Jobs that have not begun are cancelled.
    """
    if not all(future.done() for future in futures):
        await wait_settled(futures)
    if any(error_of(future) is not None for future in futures):
        await stop(futures)
    try:
        return results(futures)
    finally:
        futures = []


def results(futures: Iterable[Future[T]]) -> list[T]:
    """The results of futures that are done, or one of which has failed.

    Raises:
        Exception: That of the first one that failed.
    """
    failed = [future for future in futures if error_of(future) is not None]
    try:
        if failed:
            failed[0].result()
        return [future.result() for future in futures]
    finally:
        futures, failed = [], []
