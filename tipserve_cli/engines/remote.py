"""A server, asked through the project's Python client."""

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final

from numpy.typing import NDArray

from service.messages import (
    ClassifyImagesRequest,
    EmbedImagesRequest,
    EmbedTextsRequest,
    EstimateMapsRequest,
    FloatArray,
    SegmentClass,
    SegmentImagesRequest,
    VisualizeFeaturesRequest,
)
from tipserve_cli.engines.engine import (
    ClassScore,
    Embedding,
    EngineError,
    Mask,
    MaskInstance,
    ModelSummary,
    request_error,
)
from tipserve_client import Client, ModelInfo, Retry, TipserveError, Unavailable
from tipserve_client.requests import OPTIONS, Method

ImageRequest = (
    ClassifyImagesRequest
    | EmbedImagesRequest
    | EstimateMapsRequest
    | SegmentImagesRequest
    | VisualizeFeaturesRequest
)
NUM_THREADS: Final = 16
MAX_ATTEMPTS: Final = 8
# For all attempts of one request: longer than a restart of the server and than its own limit.
TIMEOUT_S: Final = 300.0

logger = logging.getLogger(__name__)


class RemoteEngine:
    """A server; `url` and `api_key` are those of the client.

    Raises:
        EngineError: The URL is invalid.
    """

    def __init__(self, url: str, api_key: str | None) -> None:
        self.window = 2 * NUM_THREADS
        self._url = url
        retry = Retry(
            max_attempts=MAX_ATTEMPTS,
            first_pause_s=0.4,
            max_pause_s=30.0,
            # A busy server stops at its own limit, which is shorter than ours.
            retry_deadline_exceeded=True,
            on_retry=self._warn_once,
        )
        try:
            self._client = Client(url, api_key=api_key, timeout_s=TIMEOUT_S, retry=retry)
        except ValueError as error:
            raise EngineError(f"--url: {error}.") from error
        self._threads = ThreadPoolExecutor(NUM_THREADS, "remote")
        self._lock = threading.Lock()
        self._num_retries = 0

    def embed(self, request: EmbedImagesRequest) -> "Future[Embedding]":
        """As `Engine` says."""
        return self._threads.submit(self._embed, request)

    def segment(self, request: SegmentImagesRequest) -> "Future[Mask]":
        """As `Engine` says."""
        return self._threads.submit(self._segment, request)

    def _segment(self, request: SegmentImagesRequest) -> Mask:
        options = _options("segment_images", request)
        options["background_classes"] = _classes(request.background_classes) or None
        with self._translated_errors():
            (mask,) = self._client.segment(_encoded(request), _classes(request.classes), **options)
        instances = tuple(
            MaskInstance(
                label=one.label, area=one.area, box=one.box, score=one.score, counts=one.counts
            )
            for one in mask.instances
        )
        classes = tuple(one.name for one in mask.classes)
        return Mask(labels_HW=mask.labels, classes=classes, instances=instances)

    def embed_texts(self, request: EmbedTextsRequest) -> "Future[FloatArray]":
        """As `Engine` says."""
        return self._threads.submit(self._embed_texts, request)

    def _embed_texts(self, request: EmbedTextsRequest) -> FloatArray:
        with self._translated_errors():
            found: FloatArray = self._client.embed_texts(
                request.texts, **_options("embed_texts", request)
            )
        return found

    def classify(self, request: ClassifyImagesRequest) -> "Future[tuple[ClassScore, ...]]":
        """As `Engine` says."""
        return self._threads.submit(self._classify, request)

    def _classify(self, request: ClassifyImagesRequest) -> tuple[ClassScore, ...]:
        options = _options("classify_images", request)
        with self._translated_errors():
            (scores,) = self._client.classify(
                _encoded(request), _classes(request.classes), **options
            )
        return tuple(
            ClassScore(name=one.name, probability=one.probability, cosine=one.cosine)
            for one in scores
        )

    def visualize(self, request: VisualizeFeaturesRequest) -> "Future[NDArray[Any]]":
        """As `Engine` says."""
        return self._threads.submit(self._visualize, request)

    def _visualize(self, request: VisualizeFeaturesRequest) -> NDArray[Any]:
        options = _options("visualize_features", request)
        with self._translated_errors():
            drawn: list[NDArray[Any]] = self._client.features(_encoded(request), **options)
        return drawn[0]

    def estimate(self, request: EstimateMapsRequest) -> "Future[FloatArray]":
        """As `Engine` says."""
        return self._threads.submit(self._estimate, request)

    def _estimate(self, request: EstimateMapsRequest) -> FloatArray:
        is_depth = request.task == "depth"
        ask = self._client.depth if is_depth else self._client.normals
        options = _options("estimate_depth" if is_depth else "estimate_normals", request)
        with self._translated_errors():
            maps: list[FloatArray] = ask(_encoded(request), **options)
        return maps[0]

    def models(self) -> list[ModelSummary]:
        """As `Engine` says."""
        with self._translated_errors():
            return [_summary(model) for model in self._client.models()]

    def close(self) -> None:
        """Drop waiting requests and close the connections."""
        self._threads.shutdown(cancel_futures=True)
        self._client.close()

    def _embed(self, request: EmbedImagesRequest) -> Embedding:
        options = _options("embed_images", request)
        with self._translated_errors():
            (embedding,) = self._client.embed_images(_encoded(request), **options)
        return {name: getattr(embedding, name) for name in request.outputs}

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        try:
            yield
        except Unavailable as error:
            raise EngineError(f"{self._url} is unavailable: {error.message}") from error
        except TipserveError as error:
            raise request_error(error.message, error.code, error.param) from error

    def _warn_once(self, error: TipserveError, pause_s: float) -> None:
        """Explain a pause, but not for the first retry, which is usual on a busy server."""
        del pause_s
        with self._lock:
            self._num_retries += 1
            is_second = self._num_retries == 2
        if is_second:
            logger.warning("%s: %s Retrying, at most %s attempts.", self._url, error, MAX_ATTEMPTS)


def _options(method: Method, request: ImageRequest | EmbedTextsRequest) -> dict[str, Any]:
    """The client's options of a method, which have the names of the request's fields."""
    return {name: getattr(request, name) for name in OPTIONS[method] if hasattr(request, name)}


def _encoded(request: ImageRequest) -> bytes:
    (image,) = request.images
    assert isinstance(image, bytes)
    return image


def _classes(classes: tuple[SegmentClass, ...]) -> Any:
    # A list keeps a name that is given twice, so that the server can refuse it.
    if any(one.prompts for one in classes):
        return {one.name: one.prompts for one in classes}
    return [one.name for one in classes]


def _summary(model: ModelInfo) -> ModelSummary:
    return ModelSummary(
        name=model.name,
        variant=model.variant,
        embed_dim=model.embed_dim,
        patch_size=model.patch_size,
        native_size=model.native_size,
        outputs=model.outputs,
        runtime=model.runtime,
        precision=model.precision,
        device=model.device,
        fingerprint=model.package_digest,
    )
