"""Primitives that differ between asyncio and threads, each pair side by side.

The modules of `_async` use the first of each pair. generate_sync.py drops the prefix `Async` or
`async_`, so that the modules of `_sync` use the second.
"""

import asyncio
import threading
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Sequence,
)
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from os import PathLike
from typing import Any, Self, TypeVar

from tipserve_client.images import ImageInput

T = TypeVar("T")
AsyncSource = Iterable[ImageInput] | AsyncIterable[ImageInput]
Source = Iterable[ImageInput]


async def async_pack(function: Callable[[], T], images: Sequence[ImageInput]) -> T:
    """Run `function` in a thread if an image must be encoded: a large array takes seconds as PNG.

    Files and encoded bytes need no encoding. `function` then runs at once, because reading a small
    file takes less time than starting a thread.
    """
    if all(isinstance(image, bytes | str | PathLike) for image in images):
        return function()
    return await asyncio.to_thread(function)


def pack(function: Callable[[], T], images: Sequence[ImageInput]) -> T:
    """Run `function` in the caller's thread."""
    del images
    return function()


async def async_iterate(images: Iterable[T] | AsyncIterable[T]) -> AsyncIterator[T]:
    """Iterate over either kind of iterable."""
    if isinstance(images, AsyncIterable):
        async for image in images:
            yield image
        return
    for image in images:
        yield image


def iterate(images: Iterable[T]) -> Iterator[T]:
    """Iterate over an iterable."""
    yield from images


@asynccontextmanager
async def async_background(work: Callable[[], Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """Run `work` in a task; cancel it on exit."""
    task = asyncio.ensure_future(work())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@contextmanager
def background(work: Callable[[], None]) -> Iterator[None]:
    """Run `work` in a daemon thread.

    A thread cannot be cancelled, and it may wait in the caller's iterator for ever. So the exit
    does not wait for it.
    """
    threading.Thread(target=work, name="tipserve-images", daemon=True).start()
    yield


class AsyncWorkers:
    """Runs calls as tasks; cancels those that are left on exit."""

    def __init__(self, max_workers: int) -> None:
        del max_workers  # a full window starts no further task
        self._tasks: set[asyncio.Future[Any]] = set()

    def submit(self, function: Callable[..., Awaitable[T]], *arguments: Any) -> asyncio.Future[T]:
        """Start a call."""
        task = asyncio.ensure_future(function(*arguments))
        self._tasks.add(task)
        return task

    async def result(self, task: asyncio.Future[T]) -> T:
        """Wait for a call's result, or raise its error."""
        try:
            return await task
        finally:
            self._tasks.discard(task)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class Workers(ThreadPoolExecutor):
    """Runs calls in threads; on exit drops those that wait and finishes those that run."""

    def result(self, future: Future[T]) -> T:
        """Wait for a call's result, or raise its error."""
        return future.result()

    def __exit__(self, *_: object) -> None:
        self.shutdown(cancel_futures=True)


async def async_call_rpc(rpc: Any, message: Any, **options: Any) -> tuple[Any, Any]:
    """The response of a unary RPC and its trailing metadata."""
    call = rpc(message, **options)
    response = await call
    return response, await call.trailing_metadata()


def call_rpc(rpc: Any, message: Any, **options: Any) -> tuple[Any, Any]:
    """The response of a unary RPC and its trailing metadata."""
    response, call = rpc.with_call(message, **options)
    return response, call.trailing_metadata()
