"""The synchronous client: one class for both protocols."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeVar, Unpack, overload

from tipserve_client import thread_stream
from tipserve_client.answers import (
    HalfImageEmbedding,
    ImageEmbedding,
    Int8ImageEmbedding,
    Item,
    ModelInfo,
)
from tipserve_client.asks import Ask, Dtype, EmbedImagesOptions, Float32, make_ask
from tipserve_client.errors import TipserveError
from tipserve_client.grpc_transport import GrpcTransport
from tipserve_client.http_transport import HttpTransport
from tipserve_client.images import ImageInput
from tipserve_client.methods import Methods
from tipserve_client.retries import Attempts, Retry
from tipserve_client.stream_items import StreamWire
from tipserve_client.target import Tls, read_target

T = TypeVar("T")

DEFAULT_TIMEOUT_S: Final = 60.0
DEFAULT_WINDOW: Final = 64
MAX_HTTP_CONNECTIONS: Final = 16


class Client(Methods):
    """Asks one server. Thread-safe; close it, or use it in a `with` block.

    Args:
        url: `http://host:8000`, `https://`, `grpc://host:8001` or `grpcs://`.
        api_key: Where the server wants one.
        timeout_s: Seconds for all tries of a request; the server is told, and stops in time.
        retry: How patient to be; None is the default.
        tls: Files for TLS.
        priority: Of every request; 1 goes first, 3 last.

    Every method raises a `TipserveError` where there is no answer.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retry: Retry | None = None,
        tls: Tls | None = None,
        priority: Literal[1, 2, 3] | None = None,
    ) -> None:
        target = read_target(url, api_key=api_key, tls=tls, priority=priority)
        self._timeout_s = timeout_s
        self._retry = retry or Retry()
        self._transport: GrpcTransport | HttpTransport
        if target.protocol == "grpc":
            self._transport = GrpcTransport(target)
        else:
            self._transport = HttpTransport(target, max_connections=MAX_HTTP_CONNECTIONS)
        self._clock: Callable[[], float] = time.monotonic
        self._sleep: Callable[[float], None] = time.sleep

    def models(self) -> list[ModelInfo]:
        """What is served, the default model first."""
        return self._try(self._transport.models, None)

    @overload
    def stream_images(
        self,
        images: Iterable[ImageInput],
        *,
        window: int = DEFAULT_WINDOW,
        dtype: Float32 = None,
        **options: Unpack[EmbedImagesOptions],
    ) -> Iterator[Item[ImageEmbedding]]: ...

    @overload
    def stream_images(
        self,
        images: Iterable[ImageInput],
        *,
        window: int = DEFAULT_WINDOW,
        dtype: Literal["float16"],
        **options: Unpack[EmbedImagesOptions],
    ) -> Iterator[Item[HalfImageEmbedding]]: ...

    @overload
    def stream_images(
        self,
        images: Iterable[ImageInput],
        *,
        window: int = DEFAULT_WINDOW,
        dtype: Literal["int8"],
        **options: Unpack[EmbedImagesOptions],
    ) -> Iterator[Item[Int8ImageEmbedding]]: ...

    def stream_images(
        self,
        images: Iterable[ImageInput],
        *,
        window: int = DEFAULT_WINDOW,
        dtype: Dtype | None = None,
        **options: Unpack[EmbedImagesOptions],
    ) -> Iterator[Item[Any]]:
        """Embeddings of any number of images, in their order, as they come.

        Over gRPC all go over one RPC; where that breaks it is begun anew with what has no answer
        yet. What is wrong with one image is its item's error, and the stream goes on.

        Args:
            images: Read in a thread of its own, at most `window` ahead of the answers.
            window: Images that are on their way at most; over HTTP no more than 16.
            dtype: As for `embed_images`.
            options: As for `embed_images`; `timeout_s` is for each image.

        Raises:
            ValueError: The window has no room for an image.
        """
        if window < 1:
            raise ValueError(f"window: give at least 1, not {window}")
        ask = make_ask("embed_images", {**options, "dtype": dtype})
        timeout_s = self._timeout_s if ask.timeout_s is None else ask.timeout_s
        if isinstance(self._transport, GrpcTransport):
            return thread_stream.over_grpc(
                self._transport,
                images,
                StreamWire(ask, timeout_s),
                window_size=window,
                attempts=Attempts(self._retry, timeout_s, self._clock),
                sleep=self._sleep,
            )
        size = min(window, MAX_HTTP_CONNECTIONS)
        return thread_stream.over_http(
            self._ask, images, lambda encoded: replace(ask, images=(encoded,)), window_size=size
        )

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _ask(self, ask: Ask) -> Any:
        return self._try(lambda left_s: self._transport.send(ask, left_s), ask.timeout_s)

    def _try(self, send: Callable[[float], T], timeout_s: float | None) -> T:
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        attempts = Attempts(self._retry, limit_s, self._clock)
        while True:
            try:
                return send(attempts.remaining_s())
            except TipserveError as error:
                self._sleep(attempts.pause_s(error))
