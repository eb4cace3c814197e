"""A model in this process: the data plane of the service with its batching, without a server."""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, Final, TypeVar

from numpy.typing import NDArray

from model.package import Manifest
from service.call import Call
from service.data_plane import DataPlane
from service.errors import Overloaded, ServiceError
from service.fair_pool import FairPool
from service.messages import (
    ClassifyImagesRequest,
    EmbedImagesRequest,
    EmbedTextsRequest,
    EstimateMapsRequest,
    FloatArray,
    ModelInfo,
    SegmentImagesRequest,
    VisualizeFeaturesRequest,
)
from service.models.conversion import ModelSource, open_source
from service.models.heads import HeadFolder
from service.models.loading import load_model, num_pool_threads, request_limits
from service.models.registry import ModelRegistry
from service.models.served_model import ServedModel
from service.monitoring.metrics import Metrics
from service.outputs.run_lengths import compress_counts
from service.request_gate import RequestGate
from service.settings import Settings
from tipserve_cli.engines.engine import (
    ClassScore,
    Embedding,
    EngineError,
    Mask,
    MaskInstance,
    ModelSummary,
    image_outputs,
    request_error,
)

# Long, because a job has no caller who waits, but finite, so that a request cannot hang for ever.
DEADLINE_S: Final = 3600.0
CLOSE_LIMIT_S: Final = 10.0
BATCHES_WAITING: Final = 2

T = TypeVar("T")
Loader = Callable[[Settings, Metrics, ModelSource], ServedModel]


class InProcessEngine:
    """Loads the models of the settings; closing it frees them.

    Raises:
        EngineError: A model cannot be loaded.
    """

    def __init__(self, settings: Settings, load: Loader = load_model) -> None:
        metrics = Metrics()
        self._models = ModelRegistry(metrics, HeadFolder(settings.heads))
        gate = RequestGate(metrics)
        self._num_pool_threads = num_pool_threads(settings)
        self._pool = FairPool(self._num_pool_threads, "pool")
        self._plane = DataPlane(
            gate,
            self._models,
            limits=request_limits(settings),
            max_image_patches=settings.max_batch_patches,
            pool=self._pool,
            jpeg_decode=settings.jpeg_decode,
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="loop", daemon=True)
        self._thread.start()
        try:
            for text in settings.model:
                source = ModelSource.from_setting(text, settings.cache, settings.convert_precisions)
                self._models.put(load(settings, metrics, source))
        except (ServiceError, ValueError, OSError, ImportError) as error:
            self.close()
            raise EngineError(str(error)) from error
        except BaseException:
            self.close()
            raise
        gate.open()
        self.window = self._busy_window()

    def embed(self, request: EmbedImagesRequest) -> "Future[Embedding]":
        """As `Engine` says; the image may also be an array of pixels."""
        return asyncio.run_coroutine_threadsafe(self._embed(request), self._loop)

    def segment(self, request: SegmentImagesRequest) -> "Future[Mask]":
        """As `Engine` says."""
        return asyncio.run_coroutine_threadsafe(self._segment(request), self._loop)

    def embed_texts(self, request: EmbedTextsRequest) -> "Future[FloatArray]":
        """As `Engine` says."""
        return asyncio.run_coroutine_threadsafe(self._embed_texts(request), self._loop)

    def classify(self, request: ClassifyImagesRequest) -> "Future[tuple[ClassScore, ...]]":
        """As `Engine` says."""
        return asyncio.run_coroutine_threadsafe(self._classify(request), self._loop)

    def visualize(self, request: VisualizeFeaturesRequest) -> "Future[NDArray[Any]]":
        """As `Engine` says."""
        return asyncio.run_coroutine_threadsafe(self._visualize(request), self._loop)

    def estimate(self, request: EstimateMapsRequest) -> "Future[FloatArray]":
        """As `Engine` says."""
        return asyncio.run_coroutine_threadsafe(self._estimate(request), self._loop)

    def models(self) -> list[ModelSummary]:
        """As `Engine` says."""
        return [summarize(info.manifest, info) for info in self._plane.list_models()]

    def close(self) -> None:
        """Free the models and end the threads."""
        for served in self._models.models():
            served.close(CLOSE_LIMIT_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._pool.shutdown()

    async def _embed(self, request: EmbedImagesRequest) -> Embedding:
        answer = await retry_overload(lambda call: self._plane.embed_images(request, call))
        return answer.embeddings[0]

    async def _segment(self, request: SegmentImagesRequest) -> Mask:
        answer = await retry_overload(lambda call: self._plane.segment_images(request, call))
        (found,) = answer.segmentations
        texts = compress_counts([one.counts for one in found.instances])
        return Mask(
            labels_HW=found.labels_HW,
            classes=answer.classes,
            instances=tuple(
                MaskInstance(
                    label=one.label, area=one.area, box=one.box, score=one.score, counts=text
                )
                for one, text in zip(found.instances, texts, strict=True)
            ),
        )

    async def _embed_texts(self, request: EmbedTextsRequest) -> FloatArray:
        answer = await retry_overload(lambda call: self._plane.embed_texts(request, call))
        return answer.embeddings_TD

    async def _classify(self, request: ClassifyImagesRequest) -> tuple[ClassScore, ...]:
        answer = await retry_overload(lambda call: self._plane.classify_images(request, call))
        return tuple(
            ClassScore(name=answer.classes[label - 1], probability=share, cosine=cosine)
            for label, share, cosine in answer.classifications[0].rows()
        )

    async def _visualize(self, request: VisualizeFeaturesRequest) -> NDArray[Any]:
        answer = await retry_overload(lambda call: self._plane.visualize_features(request, call))
        return answer.maps[0]

    async def _estimate(self, request: EstimateMapsRequest) -> FloatArray:
        answer = await retry_overload(lambda call: self._plane.estimate_maps(request, call))
        return answer.maps[0]

    def _busy_window(self) -> int:
        """Images that fill a batch and the next one in every lane, and all decoding threads."""
        served = self._models.find(None)
        batch = max((bucket.max_batch_images for bucket in served.info.buckets), default=1)
        num_lanes = sum(served.lane_report().states.values())
        return BATCHES_WAITING * num_lanes * batch + self._num_pool_threads


def summarize(manifest: Manifest, info: ModelInfo | None = None) -> ModelSummary:
    """Describe a model; without `info` it is not loaded, because other machines compute it."""
    return ModelSummary(
        name=manifest.name,
        variant=manifest.variant,
        embed_dim=manifest.embed_dim,
        patch_size=manifest.patch_size,
        native_size=manifest.native_size,
        outputs=image_outputs(manifest.outputs if info is None else info.outputs),
        runtime="" if info is None else info.runtime,
        precision="" if info is None else info.precision,
        device="" if info is None else info.device,
        fingerprint=manifest.digest,
    )


def open_manifest(settings: Settings) -> Manifest:
    """Verify the package of the first model and read its manifest, without loading the model.

    Raises:
        EngineError: The package is missing or invalid.
    """
    source = ModelSource.from_setting(
        settings.model[0], settings.cache, settings.convert_precisions
    )
    try:
        manifest = open_source(source).manifest
    except (ServiceError, ValueError, OSError, ImportError) as error:
        raise EngineError(str(error)) from error
    return manifest if source.name is None else manifest.model_copy(update={"name": source.name})


async def retry_overload(
    ask: Callable[[Call], Coroutine[Any, Any, T]],
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Coroutine[Any, Any, None]] = asyncio.sleep,
) -> T:
    """Run a request; while the queue is full, try again until the deadline.

    Raises:
        ImageRefused: The image is invalid.
        EngineError: The request failed for another reason.
    """
    deadline = clock() + DEADLINE_S
    while True:
        call = Call(request_id="command", deadline=deadline)
        try:
            return await ask(call)
        except ServiceError as error:
            pause_s = error.retry_after_s or 1.0
            if not isinstance(error, Overloaded) or clock() + pause_s >= deadline:
                raise request_error(error.message, error.code, error.param) from error
            await sleep(pause_s)
        finally:
            call.free_memory()
