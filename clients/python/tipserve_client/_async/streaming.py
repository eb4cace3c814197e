"""Streams of images: read ahead within a window, answered in order, resumed after a failure."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any

import grpc

from tipserve_client._async.transports import AsyncGrpcTransport
from tipserve_client.concurrency import (
    AsyncSource,
    AsyncWorkers,
    async_background,
    async_iterate,
    async_pack,
)
from tipserve_client.connection import Attempts
from tipserve_client.errors import TipserveError, Unavailable
from tipserve_client.grpc_wire import StreamWire, rpc_error
from tipserve_client.images import ImageInput, encode_image
from tipserve_client.requests import PendingImage, Request
from tipserve_client.results import Item

Prepare = Callable[[int, ImageInput], Awaitable[PendingImage]]


async def stream_over_grpc(
    transport: AsyncGrpcTransport,
    images: AsyncSource,
    wire: StreamWire,
    *,
    window_size: int,
    attempts: Attempts,
    sleep: Callable[[float], Awaitable[None]],
) -> AsyncIterator[Item[Any]]:
    """Yield answers in order, over one RPC or, if that fails, over the next one.

    Raises:
        TipserveError: The server is unreachable, or refuses the stream.
    """

    async def prepare(index: int, image: ImageInput) -> PendingImage:
        return await async_pack(lambda: wire.write(index, image), [image])

    async with _filled_window(images, prepare, window_size) as window:
        while True:
            try:
                async with aclosing(_answers(transport, window, wire, attempts)) as answers:
                    async for item in answers:
                        yield item
                break
            except TipserveError as error:
                await sleep(attempts.pause_s(error))
        window.raise_failure()


async def stream_over_http(
    send: Callable[[Request], Awaitable[Any]],
    images: AsyncSource,
    template: Request,
    *,
    window_size: int,
) -> AsyncIterator[Item[Any]]:
    """Yield answers in order. HTTP has no streams, so requests run concurrently."""

    async def start(index: int, image: ImageInput) -> PendingImage:
        try:
            encoded = await async_pack(lambda: encode_image(image), [image])
        except TipserveError as error:
            return PendingImage(index, error=error)
        return PendingImage(index, workers.submit(send, replace(template, images=(encoded,))))

    async with (
        AsyncWorkers(window_size) as workers,
        _filled_window(images, start, window_size) as window,
    ):
        while (pending := await window.image(window.num_answered)) is not None:
            yield await _outcome(pending, workers)
            await window.remove_first()
        window.raise_failure()


class AsyncWindow:
    """The images of a stream without an answer, in order, at most `size` of them.

    One task adds images, one sends them, one removes them when they are answered.

    Attributes:
        num_answered: Index of the first image without an answer.
    """

    def __init__(self, size: int) -> None:
        self.num_answered = 0
        self._size = size
        self._pending: deque[PendingImage] = deque()
        self._is_complete = False
        self._is_closed = False
        self._failure: BaseException | None = None
        self._changed = asyncio.Condition()

    async def fill(self, images: AsyncSource, prepare: Prepare) -> None:
        """Add all images, each when there is room, until the window is closed."""
        index = 0
        try:
            async for image in async_iterate(images):
                async with self._changed:
                    await self._changed.wait_for(
                        lambda: self._is_closed or len(self._pending) < self._size
                    )
                if self._is_closed:
                    return
                pending = await prepare(index, image)
                async with self._changed:
                    self._pending.append(pending)
                    self._changed.notify_all()
                index += 1
        except BaseException as error:
            # Also what is no Exception: the caller would wait for ever otherwise.
            self._failure = error
        async with self._changed:
            self._is_complete = True
            self._changed.notify_all()

    async def image(self, index: int) -> PendingImage | None:
        """Wait for the first image from `index` on that has no answer; None if none follows."""
        async with self._changed:
            await self._changed.wait_for(
                lambda: (
                    self._is_complete
                    or self._is_closed
                    or max(0, index - self.num_answered) < len(self._pending)
                )
            )
            # Unreadable images are answered without being sent, perhaps before they are asked for.
            place = max(0, index - self.num_answered)
            is_there = not self._is_closed and place < len(self._pending)
            return self._pending[place] if is_there else None

    def raise_failure(self) -> None:
        """Raise what the caller's iterator raised."""
        if self._failure is not None:
            raise self._failure

    async def remove_first(self) -> None:
        """Remove the first image, because it is answered."""
        async with self._changed:
            self._pending.popleft()
            self.num_answered += 1
            self._changed.notify_all()

    async def close(self) -> None:
        """Release everything that waits to add or send images."""
        async with self._changed:
            self._is_closed = True
            self._changed.notify_all()


@asynccontextmanager
async def _filled_window(
    images: AsyncSource, prepare: Prepare, size: int
) -> AsyncIterator[AsyncWindow]:
    """A window that is filled in the background."""
    window = AsyncWindow(size)
    async with async_background(lambda: window.fill(images, prepare)):
        try:
            yield window
        finally:
            await window.close()


async def _answers(
    transport: AsyncGrpcTransport, window: AsyncWindow, wire: StreamWire, attempts: Attempts
) -> AsyncGenerator[Item[Any], None]:
    """Answers over one RPC."""

    async def requests() -> AsyncIterator[Any]:
        # A new stream sends all images again that have no answer.
        index = window.num_answered
        while (pending := await window.image(index)) is not None:
            if pending.error is None:
                yield pending.request
            index = pending.index + 1

    call = transport.stream(requests())
    responses = aiter(call)
    try:
        while (pending := await window.image(window.num_answered)) is not None:
            attempts.wait_for_answer()
            if pending.error is not None:
                item: Item[Any] = Item(index=pending.index, error=pending.error)
            else:
                item = wire.read(pending, await _next_response(responses))
            await window.remove_first()
            attempts.reset()
            yield item
    finally:
        call.cancel()


async def _next_response(responses: AsyncIterator[Any]) -> Any:
    try:
        return await anext(responses)
    except StopAsyncIteration:
        raise Unavailable("The server ended the stream early.", code="stream_ended") from None
    except grpc.RpcError as error:
        raise rpc_error(error) from None


async def _outcome(pending: PendingImage, workers: AsyncWorkers) -> Item[Any]:
    if pending.error is not None:
        return Item(index=pending.index, error=pending.error)
    try:
        (value,) = await workers.result(pending.request)
    except TipserveError as error:
        if error.ends_stream:
            raise
        return Item(index=pending.index, error=error)
    return Item(index=pending.index, value=value)
