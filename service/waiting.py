"""Waiting for several things at once; after an error or a cancellation none is left running."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Generator, Iterable
from functools import partial
from typing import Any, Final, Generic, Protocol, TypeVar

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
    futures = asyncio.ensure_future(first), asyncio.ensure_future(second)
    try:
        return await asyncio.gather(*futures)
    except BaseException:
        cancel_all(futures)
        raise
    finally:
        del futures  # See above.


class Cancellable(Protocol):
    """A future of any kind."""

    def cancel(self) -> bool:
        """Cancel it."""


def cancel_all(futures: Iterable[Cancellable]) -> None:
    """Cancel all. A loop in the caller would keep its last future in the caller's frame."""
    for future in futures:
        future.cancel()


class ThreadResult(Generic[T]):
    """A result that worker threads set for one coroutine, with one wake-up of its event loop.

    `asyncio.wrap_future` would wake it for each future.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._result: asyncio.Future[T] | None = None
        self._num_pending = 0
        self._lock = threading.Lock()

    def of(
        self, start: Callable[[Callable[[], None]], object], work: Callable[[U], None], argument: U
    ) -> asyncio.Future[T]:
        """Start work in a thread; the result is what it, or what it has started, sets.

        Only the caller may keep the future: a failed one and the frames of its error form a cycle.
        """
        result = self._result = self._loop.create_future()
        start(partial(self.run, work, argument))
        return result

    def set(self, value: T) -> None:
        """Wake the coroutine; from any thread."""
        self._wake(value, None)

    def expect(self, num_parts: int) -> None:
        """Set how many times `arrive` is called before the coroutine is woken."""
        self._num_pending = num_parts

    def arrive(self, value: T, error: BaseException | None) -> None:
        """One part is done: wake the coroutine after the last one, or by an error."""
        with self._lock:
            self._num_pending -= 1
            is_last = self._num_pending == 0
        if error is not None or is_last:
            self._wake(value, error)

    def run(self, work: Callable[[U], None], argument: U) -> None:
        """Do work; its error is the result. From any thread."""
        try:
            work(argument)
        except asyncio.CancelledError:
            pass  # the coroutine has ended
        except Exception as error:
            self._wake(None, error)

    def _wake(self, value: T | None, error: BaseException | None) -> None:
        try:
            self._loop.call_soon_threadsafe(self._settle, value, error)
        except RuntimeError:
            return  # the event loop was closed, and the coroutine with it

    def _settle(self, value: Any, error: BaseException | None) -> None:
        result, self._result = self._result, None
        if result is None or result.done():
            return
        if error is None:
            result.set_result(value)
        else:
            result.set_exception(error)
