"""A stream of images from an iterator to an iterator, for the asynchronous client.

It does what `thread_stream` does, by tasks of the caller's event loop.
"""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import grpc

from tipserve_client.answers import Item
from tipserve_client.asks import Ask
from tipserve_client.beside_loop import pack_beside
from tipserve_client.errors import TipserveError
from tipserve_client.grpc_transport import AsyncGrpcTransport, rpc_error
from tipserve_client.images import ImageInput, encode_image
from tipserve_client.line import Entry, TaskWindow
from tipserve_client.retries import Attempts
from tipserve_client.stream_items import StreamWire, ended_early

ImageInputs = Iterable[ImageInput] | AsyncIterable[ImageInput]
MakeEntry = Callable[[int, ImageInput], Awaitable[Entry]]


async def over_grpc(
    transport: AsyncGrpcTransport,
    images: ImageInputs,
    wire: StreamWire,
    *,
    window_size: int,
    attempts: Attempts,
    sleep: Callable[[float], Awaitable[None]],
) -> AsyncIterator[Item[Any]]:
    """Answers in order, over one RPC and, where that breaks, over the next.

    Raises:
        TipserveError: The server cannot be reached, or refuses the stream.
    """

    async def pack(index: int, image: ImageInput) -> Entry:
        return await pack_beside(lambda: wire.entry(index, image), [image])

    async with _filled(images, pack, window_size) as window:
        while True:
            try:
                async for item in _one_stream(transport, window, wire, attempts):
                    yield item
                break
            except TipserveError as error:
                await sleep(attempts.pause_s(error))
        if window.line.failure is not None:
            raise window.line.failure


async def over_http(
    send: Callable[[Ask], Awaitable[Any]],
    images: ImageInputs,
    make_ask: Callable[[bytes], Ask],
    *,
    window_size: int,
) -> AsyncIterator[Item[Any]]:
    """Answers in order; HTTP has no streams, so requests go side by side."""
    tasks: set[asyncio.Future[Any]] = set()

    async def begin(index: int, image: ImageInput) -> Entry:
        try:
            encoded = await pack_beside(lambda: encode_image(image), [image])
        except TipserveError as error:
            return Entry(index, error=error)
        task = asyncio.ensure_future(send(make_ask(encoded)))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        return Entry(index, task)

    try:
        async with _filled(images, begin, window_size) as window:
            while (entry := await window.head()) is not None:
                yield await _outcome(entry)
                window.pop()
            if window.line.failure is not None:
                raise window.line.failure
    finally:
        left = list(tasks)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


@asynccontextmanager
async def _filled(images: ImageInputs, make: MakeEntry, size: int) -> AsyncIterator[TaskWindow]:
    """A window that a task of its own fills."""
    window = TaskWindow(size)

    async def fill() -> None:
        try:
            index = 0
            async for image in _each(images):
                while window.line.is_full:
                    await window.until_change()
                window.push(await make(index, image))
                index += 1
        except Exception as error:
            window.end(error)
        else:
            window.end()

    filling = asyncio.ensure_future(fill())
    try:
        yield window
    finally:
        filling.cancel()
        await asyncio.gather(filling, return_exceptions=True)


async def _each(images: ImageInputs) -> AsyncIterator[ImageInput]:
    if isinstance(images, AsyncIterable):
        async for image in images:
            yield image
        return
    for image in images:
        yield image


async def _one_stream(
    transport: AsyncGrpcTransport, window: TaskWindow, wire: StreamWire, attempts: Attempts
) -> AsyncIterator[Item[Any]]:
    number = window.begin_stream()

    async def requests() -> AsyncIterator[Any]:
        while (entry := await window.take(number)) is not None:
            yield entry.request

    call = transport.stream(requests(), None)
    answers = aiter(call)
    try:
        while (entry := await window.head()) is not None:
            attempts.begin()
            if entry.error is not None:
                item: Item[Any] = Item(index=entry.index, error=entry.error)
            else:
                item = wire.item(entry, await _next_answer(answers))
            window.pop()
            attempts.progress()
            yield item
    finally:
        call.cancel()


async def _next_answer(answers: AsyncIterator[Any]) -> Any:
    try:
        return await anext(answers)
    except StopAsyncIteration:
        raise ended_early() from None
    except grpc.RpcError as error:
        raise rpc_error(error) from None


async def _outcome(entry: Entry) -> Item[Any]:
    if entry.error is not None:
        return Item(index=entry.index, error=entry.error)
    try:
        (value,) = await entry.request
    except TipserveError as error:
        if error.ends_stream:
            raise  # where that may help, it has been tried again
        return Item(index=entry.index, error=error)
    return Item(index=entry.index, value=value)
