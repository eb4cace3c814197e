"""From a model package to a model that answers: verify, load one runtime for each lane, warm up."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from model.package import Manifest, ModelPackage
from model.runtime.base import Device
from model.runtime.loaded_graphs import parity_in_use
from model.text import TextTokenizer
from service.lanes.batch_queue import BatchRules
from service.lanes.batching import Batcher
from service.lanes.lane_worker import LaneCare
from service.lanes.warm_up import IMAGE_WORK
from service.lanes.work import BatchLimits, Kind
from service.messages import BucketLimits, ModelInfo, RequestLimits
from service.models.admission import Admission
from service.models.conversion import open_source
from service.models.lane_loading import LoadedLanes, load_lanes
from service.models.model_source import ModelSource
from service.models.served_model import ServedModel
from service.models.served_shapes import item_cost, served_tasks, with_sizes
from service.models.text_cache import TextCache
from service.monitoring.observability import Metrics
from service.settings import Settings


def request_limits(settings: Settings) -> RequestLimits:
    """The settings that bound one request."""
    return RequestLimits(
        max_images=settings.max_images_per_request,
        max_texts=settings.max_texts_per_request,
        max_classes=settings.max_classes_per_request,
        max_image_bytes=settings.max_image_bytes,
        max_image_pixels=settings.max_image_pixels,
        max_request_bytes=settings.max_request_bytes,
    )


def load_model(settings: Settings, metrics: Metrics, source: ModelSource) -> ServedModel:
    """Verify a package, load it, and run one batch of each served shape on every lane.

    What is no package yet is converted first.

    Raises:
        PackageError: There is no such model, it cannot be converted, its package is broken, or a
            served shape does not fit into a batch.
        WarmUpError: The runtime gives no usable results.
        Unavailable: The load was cancelled.
    """
    package = open_source(source)
    manifest = with_sizes(package.manifest, settings.sizes)
    if source.name is not None:
        manifest = manifest.model_copy(update={"name": source.name})
    package = replace(package, manifest=manifest)
    return serve_lanes(package, load_lanes(package, settings, source), settings, metrics)


def image_budget(manifest: Manifest, max_images: int, device: Device, settings: Settings) -> int:
    """Patches of one batch of images; one larger image still goes alone.

    On a CPU a batch of large images is no cheaper than one by one, and everybody who comes
    meanwhile waits for all of it: it holds what a full batch of the native size does.
    """
    if device == "gpu" or settings.max_batch_images is not None:
        return settings.max_batch_patches
    native_patches = (manifest.native_size // manifest.patch_size) ** 2
    return min(settings.max_batch_patches, max_images * native_patches)


def bucket_limits(
    manifest: Manifest, loaded: LoadedLanes, max_patches: int
) -> tuple[BucketLimits, ...]:
    """What was measured of each served shape of images, and what a batch of it may hold."""
    curves, peaks = loaded.warm.curves, loaded.memory.peak_bytes
    return tuple(
        BucketLimits(
            height=bucket.shape[0],
            width=bucket.shape[1],
            max_batch_images=max(
                1, min(loaded.warm.max_images, max_patches // item_cost(manifest, bucket))
            ),
            run_s=round(curve.seconds(1), 6),
            peak_bytes=peaks.get(bucket),
        )
        for bucket, curve in curves.items()
        if bucket.kind == "image"
    )


def batch_limits(
    max_images: int, budget: int, known: Mapping[Kind, int], settings: Settings
) -> dict[Kind, BatchLimits]:
    """How much a batch of each kind may hold.

    Args:
        max_images: Items of a batch of images to embed.
        budget: Its patches.
        known: Patches that each lane has the memory for, by kind.
        settings: With the bounds of texts.
    """
    images = {
        kind: BatchLimits(
            max_items=max(1, max_images // work),
            max_cost=min(budget // work, known.get(kind, budget)),
        )
        for kind, work in IMAGE_WORK.items()
    }
    texts = BatchLimits(max_items=settings.max_batch_texts, max_cost=settings.max_batch_patches)
    return {**images, "text": texts}


def serve_lanes(
    package: ModelPackage, loaded: LoadedLanes, settings: Settings, metrics: Metrics
) -> ServedModel:
    """Start the batcher over warmed lanes."""
    manifest, lanes, warm = package.manifest, loaded.lanes, loaded.warm
    runtime = lanes[0].runtime
    budget = image_budget(manifest, warm.max_images, runtime.device, settings)
    limits = batch_limits(warm.max_images, budget, loaded.max_patches, settings)
    is_cpu = runtime.device == "cpu"
    batcher = Batcher(
        lanes,
        rules=BatchRules(
            limits=limits,
            max_wait_s=settings.max_queue_delay_s,
            priority_step_s=settings.priority_step_s,
            # Lanes of a CPU compute side by side, and a large batch is no cheaper than small ones.
            share_evenly=is_cpu,
            prepare_ahead=not is_cpu if settings.prepare_ahead is None else settings.prepare_ahead,
        ),
        metrics=metrics,
        care=LaneCare(
            probe_interval_s=settings.watchdog_interval_s,
            hang_limit_s=settings.watchdog_hang_limit_s,
            dead_limit_s=settings.watchdog_dead_limit_s,
        ),
    )
    batcher.costs.begin(warm.curves, partial(item_cost, manifest))
    info = ModelInfo(
        manifest=manifest,
        runtime=runtime.name,
        precision=runtime.precision,
        device=runtime.device,
        runtime_reason=loaded.choice.reason,
        limits=request_limits(settings),
        buckets=bucket_limits(manifest, loaded, limits["image"].max_cost),
        tasks=served_tasks(manifest, runtime),
        parity=parity_in_use(manifest, loaded.choice.runtime, runtime.precision),
    )
    batcher.start()
    return ServedModel(
        info,
        tokenizer=TextTokenizer.from_package(package),
        batcher=batcher,
        lanes=lanes,
        cache=TextCache(settings.text_cache_bytes, metrics),
        admission=Admission(settings.max_queue_patches, metrics, batcher),
    )
