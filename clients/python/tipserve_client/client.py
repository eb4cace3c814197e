"""The synchronous client: one class for both protocols."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeVar, Unpack

from numpy.typing import NDArray

from tipserve_client import thread_stream
from tipserve_client.answers import (
    ClassScore,
    FloatArray,
    ImageEmbedding,
    ModelInfo,
    Segmentation,
    StreamItem,
)
from tipserve_client.asks import (
    Ask,
    Classes,
    ClassifyOptions,
    EmbedImagesOptions,
    EmbedTextsOptions,
    FeaturesOptions,
    MapOptions,
    SegmentOptions,
    make_ask,
)
from tipserve_client.errors import TipserveError
from tipserve_client.grpc_transport import GrpcTransport
from tipserve_client.http_transport import HttpTransport
from tipserve_client.pictures import Picture
from tipserve_client.retries import Attempts, Retry
from tipserve_client.stream_items import StreamWire
from tipserve_client.target import Tls, read_target

T = TypeVar("T")

DEFAULT_TIMEOUT_S: Final = 60.0
DEFAULT_WINDOW: Final = 64
MAX_HTTP_CONNECTIONS: Final = 16


class Client:
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

    def embed_images(
        self, pictures: Picture | Iterable[Picture], **options: Unpack[EmbedImagesOptions]
    ) -> list[ImageEmbedding]:
        """Embeddings of pictures, in their order; of each what `outputs` names."""
        found: list[ImageEmbedding] = self._ask(
            make_ask("embed_images", options, pictures=pictures)
        )
        return found

    def embed_texts(self, texts: Iterable[str], **options: Unpack[EmbedTextsOptions]) -> FloatArray:
        """One embedding for each text, [texts, width]."""
        found: FloatArray = self._ask(make_ask("embed_texts", options, texts=texts))
        return found

    def segment(
        self,
        pictures: Picture | Iterable[Picture],
        classes: Classes,
        **options: Unpack[SegmentOptions],
    ) -> list[Segmentation]:
        """A mask of each picture's size: k where the k-th class is."""
        found: list[Segmentation] = self._ask(
            make_ask("segment_images", options, pictures=pictures, classes=classes)
        )
        return found

    def classify(
        self,
        pictures: Picture | Iterable[Picture],
        classes: Classes,
        **options: Unpack[ClassifyOptions],
    ) -> list[list[ClassScore]]:
        """How well each class fits each picture, the best first."""
        found: list[list[ClassScore]] = self._ask(
            make_ask("classify_images", options, pictures=pictures, classes=classes)
        )
        return found

    def features(
        self, pictures: Picture | Iterable[Picture], **options: Unpack[FeaturesOptions]
    ) -> list[NDArray[Any]]:
        """Patch embeddings made visible: colours [H, W, 3], one component or groups [H, W]."""
        found: list[NDArray[Any]] = self._ask(make_ask("view_features", options, pictures=pictures))
        return found

    def depth(
        self, pictures: Picture | Iterable[Picture], **options: Unpack[MapOptions]
    ) -> list[FloatArray]:
        """Metres for every pixel, [H, W], where the model has the head for it."""
        found: list[FloatArray] = self._ask(make_ask("estimate_depth", options, pictures=pictures))
        return found

    def normals(
        self, pictures: Picture | Iterable[Picture], **options: Unpack[MapOptions]
    ) -> list[FloatArray]:
        """A vector of unit length for every pixel, [H, W, 3], where the model has the head."""
        found: list[FloatArray] = self._ask(
            make_ask("estimate_normals", options, pictures=pictures)
        )
        return found

    def models(self) -> list[ModelInfo]:
        """What is served, the default model first."""
        return self._try(self._transport.models, None)

    def stream_images(
        self,
        pictures: Iterable[Picture],
        *,
        window: int = DEFAULT_WINDOW,
        **options: Unpack[EmbedImagesOptions],
    ) -> Iterator[StreamItem[ImageEmbedding]]:
        """Embeddings of any number of pictures, in their order, as they come.

        Over gRPC all go over one RPC; where that breaks it is begun anew with what has no answer
        yet. What is wrong with one picture is its item's error, and the stream goes on.

        Args:
            pictures: Read in a thread of its own, at most `window` ahead of the answers.
            window: Pictures that are on their way at most; over HTTP no more than 16.
            options: As for `embed_images`; `timeout_s` is for each picture.
        """
        ask = make_ask("embed_images", options)
        timeout_s = self._timeout_s if ask.timeout_s is None else ask.timeout_s
        if isinstance(self._transport, GrpcTransport):
            return thread_stream.over_grpc(
                self._transport,
                pictures,
                StreamWire(ask, timeout_s),
                window_size=window,
                attempts=Attempts(self._retry, timeout_s, self._clock),
                sleep=self._sleep,
            )
        size = min(window, MAX_HTTP_CONNECTIONS)
        return thread_stream.over_http(
            self._ask, pictures, lambda image: replace(ask, images=(image,)), window_size=size
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
