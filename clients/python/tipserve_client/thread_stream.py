"""A stream of images from an iterator to an iterator, for the synchronous client.

A thread takes images from the caller's iterator, up to a window ahead of what is answered. A
stream that breaks is begun anew with what has no answer yet, so each image is answered once.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from tipserve_client.answers import Item
from tipserve_client.asks import Ask
from tipserve_client.errors import TipserveError
from tipserve_client.grpc_transport import GrpcTransport, rpc_error
from tipserve_client.images import ImageInput, encode_image
from tipserve_client.line import Entry, ThreadWindow
from tipserve_client.retries import Attempts
from tipserve_client.stream_items import StreamWire, ended_early

MakeEntry = Callable[[int, ImageInput], Entry]


def over_grpc(
    transport: GrpcTransport,
    images: Iterable[ImageInput],
    wire: StreamWire,
    *,
    window_size: int,
    attempts: Attempts,
    sleep: Callable[[float], None],
) -> Iterator[Item[Any]]:
    """Answers in order, over one RPC and, where that breaks, over the next.

    Raises:
        TipserveError: The server cannot be reached, or refuses the stream.
    """
    window = _filled(images, wire.entry, window_size)
    try:
        while True:
            try:
                yield from _one_stream(transport, window, wire, attempts)
                break
            except TipserveError as error:
                sleep(attempts.pause_s(error))
        if window.line.failure is not None:
            raise window.line.failure
    finally:
        window.close()


def over_http(
    send: Callable[[Ask], Any],
    images: Iterable[ImageInput],
    make_ask: Callable[[bytes], Ask],
    *,
    window_size: int,
) -> Iterator[Item[Any]]:
    """Answers in order; HTTP has no streams, so requests go side by side."""

    def begin(index: int, image: ImageInput) -> Entry:
        try:
            return Entry(index, pool.submit(send, make_ask(encode_image(image))))
        except TipserveError as error:
            return Entry(index, error=error)

    with ThreadPoolExecutor(window_size, "tipserve") as pool:
        window = _filled(images, begin, window_size)
        try:
            while (entry := window.head()) is not None:
                yield _outcome(entry)
                window.pop()
            if window.line.failure is not None:
                raise window.line.failure
        finally:
            window.close()
            pool.shutdown(wait=False, cancel_futures=True)


def _filled(images: Iterable[ImageInput], make: MakeEntry, size: int) -> ThreadWindow:
    """A window that a thread of its own fills."""
    window = ThreadWindow(size)

    def fill() -> None:
        try:
            for index, image in enumerate(images):
                if not window.until_room():
                    return
                window.push(make(index, image))
        except BaseException as error:
            window.end(error)
        else:
            window.end()

    threading.Thread(target=fill, name="tipserve-images", daemon=True).start()
    return window


def _one_stream(
    transport: GrpcTransport, window: ThreadWindow, wire: StreamWire, attempts: Attempts
) -> Iterator[Item[Any]]:
    number = window.begin_stream()

    def requests() -> Iterator[Any]:
        while (entry := window.take(number)) is not None:
            yield entry.request

    call = transport.stream(requests(), None)
    try:
        while (entry := window.head()) is not None:
            attempts.begin()
            if entry.error is not None:
                item: Item[Any] = Item(index=entry.index, error=entry.error)
            else:
                item = wire.item(entry, _next_answer(call))
            window.pop()
            attempts.progress()
            yield item
    finally:
        call.cancel()


def _next_answer(call: Any) -> Any:
    try:
        return next(call)
    except StopIteration:
        raise ended_early() from None
    except grpc.RpcError as error:
        raise rpc_error(error) from None


def _outcome(entry: Entry) -> Item[Any]:
    if entry.error is not None:
        return Item(index=entry.index, error=entry.error)
    try:
        (value,) = entry.request.result()
    except TipserveError as error:
        if error.ends_stream:
            raise  # where that may help, it has been tried again
        return Item(index=entry.index, error=error)
    return Item(index=entry.index, value=value)
