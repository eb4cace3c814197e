"""The asynchronous client, for both protocols."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, Literal, Self, Unpack, overload

from numpy.typing import NDArray

from tipserve_client._async import streaming
from tipserve_client._async.transports import AsyncGrpcTransport, AsyncTransport, async_connect
from tipserve_client.concurrency import AsyncSource, async_pack
from tipserve_client.connection import (
    DEFAULT_TIMEOUT_S,
    MAX_HTTP_CONNECTIONS,
    Attempts,
    Priority,
    Retry,
    Tls,
    read_target,
)
from tipserve_client.errors import TipserveError
from tipserve_client.grpc_wire import StreamWire
from tipserve_client.requests import (
    Classes,
    ClassifyOptions,
    Dtype,
    EmbedOptions,
    FeaturesOptions,
    Half,
    Images,
    Int8,
    MapOptions,
    Method,
    PlainEmbedOptions,
    PlainTextsOptions,
    Request,
    SegmentOptions,
    Texts,
    TextsOptions,
    as_images,
    make_request,
)
from tipserve_client.results import (
    ClassScore,
    FloatArray,
    HalfArray,
    HalfImageEmbedding,
    ImageEmbedding,
    Int8ImageEmbedding,
    Int8Vectors,
    Item,
    ModelInfo,
    Segmentation,
)

WINDOW: Final = 64
# Values of `partial`.
No = Literal[False]
Yes = Literal[True]


class AsyncClient:
    """A client of one server. Use it within one event loop, in `async with`, or close it.

    Args:
        url: `http://host:8000`, `https://`, `grpc://host:8001` or `grpcs://`; or a
            transport of your own, for which key, certificates and priority have no effect.
        api_key: If the server requires one.
        timeout_s: For all attempts of a request. The server stops computing at that time.
        retry: How often to retry; None is `Retry()`.
        tls: Certificates.
        priority: Of every request; 1 is the highest, 3 the lowest.

    Every method raises a `TipserveError` if the request fails. With `partial=True` the error of a
    single image or text is not raised: the result has an `Item` for each, with a value or an error.
    """

    def __init__(
        self,
        url: str | AsyncTransport,
        *,
        api_key: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retry: Retry | None = None,
        tls: Tls | None = None,
        priority: Priority | None = None,
    ) -> None:
        self._timeout_s = timeout_s
        self._retry = retry or Retry()
        if isinstance(url, str):
            target = read_target(url, api_key=api_key, tls=tls, priority=priority)
            self._transport = async_connect(target)
        else:
            self._transport = url
        self._clock: Callable[[], float] = time.monotonic
        self._sleep: Callable[[float], Awaitable[None]] = asyncio.sleep

    async def models(self) -> list[ModelInfo]:
        """List the served models, the default model first."""
        models: list[ModelInfo] = await self._send(Request(method="list_models"))
        return models

    @overload
    async def embed_images(
        self, images: Images, *, partial: No = False, **options: Unpack[PlainEmbedOptions]
    ) -> list[ImageEmbedding]: ...

    @overload
    async def embed_images(
        self, images: Images, *, dtype: Half, partial: No = False, **options: Unpack[EmbedOptions]
    ) -> list[HalfImageEmbedding]: ...

    @overload
    async def embed_images(
        self, images: Images, *, dtype: Int8, partial: No = False, **options: Unpack[EmbedOptions]
    ) -> list[Int8ImageEmbedding]: ...

    @overload
    async def embed_images(
        self, images: Images, *, partial: Yes, **options: Unpack[PlainEmbedOptions]
    ) -> list[Item[ImageEmbedding]]: ...

    @overload
    async def embed_images(
        self, images: Images, *, dtype: Dtype, partial: Yes, **options: Unpack[EmbedOptions]
    ) -> list[Item[Any]]: ...

    async def embed_images(self, images: Images, **options: Any) -> Any:
        """Embed images: for each image the arrays that `outputs` names, in order.

        Args:
            images: One or several.
            options: `dtype`, the number format: `float32`, `float16`, or `int8`, which needs a
                quarter of the bytes and has a scale for each vector (see
                `Int8Vectors.to_float32`); `partial`; and fields of the service's request.
        """
        return await self._call("embed_images", options, images=images)

    @overload
    async def embed_texts(
        self, texts: Texts, *, partial: No = False, **options: Unpack[PlainTextsOptions]
    ) -> FloatArray: ...

    @overload
    async def embed_texts(
        self, texts: Texts, *, dtype: Half, partial: No = False, **options: Unpack[TextsOptions]
    ) -> HalfArray: ...

    @overload
    async def embed_texts(
        self, texts: Texts, *, dtype: Int8, partial: No = False, **options: Unpack[TextsOptions]
    ) -> Int8Vectors: ...

    @overload
    async def embed_texts(
        self, texts: Texts, *, partial: Yes, **options: Unpack[PlainTextsOptions]
    ) -> list[Item[FloatArray]]: ...

    @overload
    async def embed_texts(
        self, texts: Texts, *, dtype: Dtype, partial: Yes, **options: Unpack[TextsOptions]
    ) -> list[Item[Any]]: ...

    async def embed_texts(self, texts: Texts, **options: Any) -> Any:
        """Embed texts: one array [texts, width], or with `partial` an item with [width] for each.

        Args:
            texts: One or several; none may be blank.
            options: As for `embed_images`.
        """
        return await self._call("embed_texts", options, texts=texts)

    @overload
    async def segment(
        self,
        images: Images,
        classes: Classes,
        *,
        partial: No = False,
        **options: Unpack[SegmentOptions],
    ) -> list[Segmentation]: ...

    @overload
    async def segment(
        self, images: Images, classes: Classes, *, partial: Yes, **options: Unpack[SegmentOptions]
    ) -> list[Item[Segmentation]]: ...

    async def segment(self, images: Images, classes: Classes, **options: Any) -> Any:
        """Segment images: a mask of each image's size, k where the k-th class is, 0 elsewhere."""
        return await self._call("segment_images", options, images=images, classes=classes)

    @overload
    async def classify(
        self,
        images: Images,
        classes: Classes,
        *,
        partial: No = False,
        **options: Unpack[ClassifyOptions],
    ) -> list[list[ClassScore]]: ...

    @overload
    async def classify(
        self, images: Images, classes: Classes, *, partial: Yes, **options: Unpack[ClassifyOptions]
    ) -> list[Item[list[ClassScore]]]: ...

    async def classify(self, images: Images, classes: Classes, **options: Any) -> Any:
        """Classify images: the scores of all classes for each image, the best first."""
        return await self._call("classify_images", options, images=images, classes=classes)

    @overload
    async def features(
        self, images: Images, *, partial: No = False, **options: Unpack[FeaturesOptions]
    ) -> list[NDArray[Any]]: ...

    @overload
    async def features(
        self, images: Images, *, partial: Yes, **options: Unpack[FeaturesOptions]
    ) -> list[Item[NDArray[Any]]]: ...

    async def features(self, images: Images, **options: Any) -> Any:
        """Visualise patch embeddings: colours [H, W, 3], one component or groups [H, W]."""
        return await self._call("visualize_features", options, images=images)

    @overload
    async def depth(
        self, images: Images, *, partial: No = False, **options: Unpack[MapOptions]
    ) -> list[FloatArray]: ...

    @overload
    async def depth(
        self, images: Images, *, partial: Yes, **options: Unpack[MapOptions]
    ) -> list[Item[FloatArray]]: ...

    async def depth(self, images: Images, **options: Any) -> Any:
        """Estimate depth in metres, [H, W], if the model has a depth head."""
        return await self._call("estimate_depth", options, images=images)

    @overload
    async def normals(
        self, images: Images, *, partial: No = False, **options: Unpack[MapOptions]
    ) -> list[FloatArray]: ...

    @overload
    async def normals(
        self, images: Images, *, partial: Yes, **options: Unpack[MapOptions]
    ) -> list[Item[FloatArray]]: ...

    async def normals(self, images: Images, **options: Any) -> Any:
        """Estimate surface normals, unit vectors [H, W, 3], if the model has a normals head."""
        return await self._call("estimate_normals", options, images=images)

    @overload
    def stream_images(
        self, images: AsyncSource, *, window: int = WINDOW, **options: Unpack[PlainEmbedOptions]
    ) -> AsyncIterator[Item[ImageEmbedding]]: ...

    @overload
    def stream_images(
        self,
        images: AsyncSource,
        *,
        window: int = WINDOW,
        dtype: Half,
        **options: Unpack[EmbedOptions],
    ) -> AsyncIterator[Item[HalfImageEmbedding]]: ...

    @overload
    def stream_images(
        self,
        images: AsyncSource,
        *,
        window: int = WINDOW,
        dtype: Int8,
        **options: Unpack[EmbedOptions],
    ) -> AsyncIterator[Item[Int8ImageEmbedding]]: ...

    def stream_images(
        self, images: AsyncSource, *, window: int = WINDOW, **options: Any
    ) -> AsyncIterator[Item[Any]]:
        """Embed any number of images: yields an item for each, in order.

        Over gRPC all images use one RPC. If it fails, the images without an answer are sent again
        over a new one. An invalid image sets the error of its item and does not end the stream.

        Args:
            images: Read in the background, at most `window` ahead of the answers.
            window: Images in flight at most; over HTTP at most 16.
            options: As for `embed_images`, without `partial`; `timeout_s` is for each image.

        Raises:
            ValueError: `window` is less than 1.
        """
        if window < 1:
            raise ValueError(f"window: {window} given, at least 1 required")
        template = make_request("embed_images", options)
        if not isinstance(self._transport, AsyncGrpcTransport):
            size = min(window, MAX_HTTP_CONNECTIONS)
            return streaming.stream_over_http(self._send, images, template, window_size=size)
        timeout_s = self._timeout_s if template.timeout_s is None else template.timeout_s
        return streaming.stream_over_grpc(
            self._transport,
            images,
            StreamWire(template, timeout_s),
            window_size=window,
            attempts=Attempts(self._retry, timeout_s, self._clock),
            sleep=self._sleep,
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _call(
        self, method: Method, options: dict[str, Any], *, images: Images = (), **given: Any
    ) -> Any:
        given |= {"images": (several := list(as_images(images)))}
        given["partial"] = options.pop("partial", False)
        request = await async_pack(lambda: make_request(method, options, **given), several)
        return await self._send(request)

    async def _send(self, request: Request) -> Any:
        limit_s = self._timeout_s if request.timeout_s is None else request.timeout_s
        attempts = Attempts(self._retry, limit_s, self._clock)
        while True:
            try:
                return await self._transport.send(request, attempts.remaining_s())
            except TipserveError as error:
                await self._sleep(attempts.pause_s(error))
