"""From a model package to a served model: verify, load the lanes, warm up."""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Final

from model.dense_maps import MapTask
from model.package import Manifest, ModelPackage, PackageError
from model.runtime.base import Device, Runtime
from model.runtime.choice import RuntimeChoice, RuntimeRequest, choose_runtime
from model.runtime.load import load_chosen
from model.runtime.loaded_graphs import parity_in_use
from model.text import TextTokenizer
from service.lanes.batch_queue import BatchRules
from service.lanes.batching import Batcher
from service.lanes.lane import Lane
from service.lanes.latency_model import IMAGE_WORK, WarmUp, WarmUpRules, measure
from service.lanes.sizing import (
    MAX_LANES,
    MEMORY_SHARE,
    BatchMemory,
    LanePlan,
    plan_lanes,
    weight_bytes,
)
from service.lanes.work import BatchLimits, Bucket, Kind
from service.lanes.worker import HealthLimits
from service.machine import PeakMeter, available_cpus, free_memory
from service.messages import MAP_TASKS, BucketLimits, ModelInfo, RequestLimits
from service.models.admission import Admission
from service.models.conversion import ModelSource, open_source
from service.models.served_model import ServedModel
from service.models.texts import TextCache
from service.monitoring.metrics import Metrics
from service.settings import Settings

# The shapes that a model is warmed up for, and what images and texts of them cost in patches.

WARM_UP_TOKENS: Final = 8


def with_sizes(manifest: Manifest, sizes: Sequence[tuple[int, int]]) -> Manifest:
    """A manifest whose served shapes have these (height, width) too, at the end.

    Raises:
        PackageError: The model does not take images of such a size.
    """
    unit, least, most = manifest.size_multiple, manifest.min_size, manifest.max_size
    for height, width in sizes:
        for side in (height, width):
            if side % unit or not least <= side <= most:
                raise PackageError(
                    f"{manifest.name} cannot serve {height} x {width} pixels: sides are multiples "
                    f"of {unit} from {least} to {most}; change sizes"
                )
    shapes = list(dict.fromkeys([*manifest.shape_buckets, *sizes]))
    return manifest.model_copy(update={"shape_buckets": shapes})


def num_patches(shape: tuple[int, ...], manifest: Manifest) -> int:
    """Patches of an image of this height and width in pixels."""
    return math.prod(shape) // manifest.patch_size**2


def served_buckets(manifest: Manifest, max_patches: int) -> list[Bucket]:
    """The shapes of images to embed and of texts that are warmed up; see `with_maps`.

    Raises:
        PackageError: An image of one of them is more than a batch may hold.
    """
    for height, width in manifest.shape_buckets:
        needed = num_patches((height, width), manifest)
        if needed > max_patches:
            raise PackageError(
                f"{manifest.name} serves {height} x {width} pixels, which are {needed} "
                f"patches; raise max_batch_patches above {max_patches}"
            )
    shapes = [Bucket("image", shape) for shape in manifest.shape_buckets]
    return [*shapes, Bucket("text", (min(WARM_UP_TOKENS, manifest.max_text_tokens),))]


def served_tasks(manifest: Manifest, runtime: Runtime) -> tuple[MapTask, ...]:
    """The dense heads that the package has and its runtime computes.

    Raises:
        PackageError: The package allows sizes that no dense head takes.
    """
    tasks = tuple(t for t in MAP_TASKS if t in manifest.outputs and t in runtime.tasks)
    if tasks and manifest.size_multiple % (2 * manifest.patch_size):
        raise PackageError(
            f"{manifest.name} has dense heads, which take multiples of {2 * manifest.patch_size} "
            f"pixels, and allows multiples of {manifest.size_multiple}; export it again"
        )
    return tasks


def with_maps(buckets: Sequence[Bucket], tasks: Sequence[MapTask]) -> list[Bucket]:
    """The shapes that are warmed up, and of images those by which each dense head is."""
    images = [bucket for bucket in buckets if bucket.kind == "image"]
    return [*buckets, *(Bucket(task, bucket.shape) for task in tasks for bucket in images)]


def item_cost(manifest: Manifest, bucket: Bucket) -> int:
    """Patches of an image, tokens of a text."""
    return num_patches(bucket.shape, manifest) if bucket.is_image else bucket.shape[0]


# A package's lanes: as many as the machine is good for, each tried out, and measured on one.

MAX_BATCH_IMAGES: Final = 64
# One whose batch is computed, and one whose images are copied meanwhile.
GPU_LANES: Final = 2
# While an image is decoded: as it was stored, and as it is laid on paper, four bytes each.
DECODED_PIXEL_BYTES: Final = 8
# Makes the runtime of a lane, given `num_threads` and `num_lanes`.
Load = Callable[..., Runtime]
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedLanes:
    """Lanes that have run every served shape, and what one of them measured.

    Attributes:
        lanes: All warm.
        choice: What computes in them.
        warm: What batches cost in time.
        memory: What single images cost in memory.
        max_patches: What a batch of each kind of images may hold for each lane to have the
            memory; a kind of which it is not known is missing.
    """

    lanes: Sequence[Lane]
    choice: RuntimeChoice
    warm: WarmUp
    memory: BatchMemory
    max_patches: Mapping[Kind, int]


def load_lanes(package: ModelPackage, settings: Settings, source: ModelSource) -> LoadedLanes:
    """Load a runtime for each lane, run every served shape on it, and measure what batches cost.

    The first lane is loaded alone, because what its images take in memory decides how many lanes
    there may be.

    Raises:
        PackageError: A served shape does not fit into a batch, not into memory, or not to the
            package's dense heads.
        WarmUpError: The runtime gives no usable results.
        Unavailable: The load was cancelled.
    """
    manifest = package.manifest
    buckets = served_buckets(manifest, settings.max_batch_patches)
    free_bytes = free_memory()
    choice = choose(package, settings)
    load = partial(load_chosen, package, choice, cache=settings.cache)
    weights = weight_bytes(package, choice)
    plan = lane_plan(settings, free_bytes, weights, device=choice.device)
    first, first_s, memory = load_first_lane(package, load, plan, buckets)
    fitting = lane_plan(
        settings, free_bytes, weights, device=choice.device, image_bytes=memory.largest_bytes
    )
    if fitting != plan:
        first.runtime.close()
        first, first_s, memory = load_first_lane(package, load, fitting, buckets)
    check_memory(manifest, fitting, memory, free_bytes)

    def load_lane(_: int) -> Lane:
        source.check()
        return _load_lane(package, load, fitting, buckets)

    # At the start the others all at once; later one by one, for other models need the processors.
    num_others = fitting.num_lanes - 1
    with ThreadPoolExecutor(1 if source.is_background else max(1, num_others)) as loaders:
        lanes = [first, *loaders.map(load_lane, range(num_others))]
    source.check()
    began = time.monotonic()
    warm = warm_up(manifest, first, first_s, settings)
    chosen = describe(fitting, warm, memory) | {"seconds": round(time.monotonic() - began, 3)}
    logger.info("measured", extra={"fields": chosen})
    if free_bytes is None:
        return LoadedLanes(lanes, choice, warm, memory, {})
    budget_bytes = int(free_bytes * MEMORY_SHARE) // fitting.num_lanes
    return LoadedLanes(lanes, choice, warm, memory, most_patches(memory, budget_bytes, manifest))


def most_patches(memory: BatchMemory, budget_bytes: int, manifest: Manifest) -> dict[Kind, int]:
    """What a batch of each kind of images may hold, where that is known."""
    known = {
        kind: memory.patches_within(budget_bytes, partial(item_cost, manifest), kind)
        for kind in IMAGE_WORK
    }
    return {kind: patches for kind, patches in known.items() if patches is not None}


def choose(package: ModelPackage, settings: Settings) -> RuntimeChoice:
    """What computes this package, as the settings and the machine have it; logged with its reason.

    Raises:
        UnusableRuntimeError: What was asked for cannot be had here.
        MissingRuntimeError: Its library is not installed.
        PackageError: The package has no graph for it.
    """
    choice = choose_runtime(
        package,
        RuntimeRequest(
            runtime=settings.runtime,
            precision=settings.precision,
            device=settings.device,
            provider=settings.onnx_provider,
        ),
    )
    fields = {"model": package.manifest.name, **asdict(choice)}
    logger.info("runtime chosen", extra={"fields": fields})
    return choice


def load_first_lane(
    package: ModelPackage, load: Load, plan: LanePlan, buckets: list[Bucket]
) -> tuple[Lane, dict[Bucket, float], BatchMemory]:
    """A lane that has run every shape once, the seconds of each, and what each took in memory."""
    lane = _new_lane(package, load, plan, buckets)
    meter = PeakMeter()
    first_s: dict[Bucket, float] = {}
    peaks: dict[Bucket, int] = {}
    buckets = with_maps(buckets, served_tasks(package.manifest, lane.runtime))

    def size(bucket: Bucket) -> tuple[bool, int]:
        return bucket.kind in MAP_TASKS, item_cost(package.manifest, bucket)

    # What a runtime once had it keeps: only from small to large does each shape show its own.
    for bucket in sorted(buckets, key=size):
        began = time.monotonic()
        peak_bytes = meter.peak_bytes(partial(lane.run_synthetic, bucket))
        first_s[bucket] = time.monotonic() - began
        if bucket.is_image and peak_bytes is not None and lane.runtime.device == "cpu":
            peaks[bucket] = peak_bytes
    return lane, {bucket: first_s[bucket] for bucket in buckets}, BatchMemory(peaks)


def check_memory(
    manifest: Manifest, plan: LanePlan, memory: BatchMemory, free_bytes: int | None
) -> None:
    """Refuse lanes that cannot compute their largest shape at the same time.

    Raises:
        PackageError: Memory does not hold it.
    """
    if free_bytes is None or plan.num_lanes * memory.largest_bytes <= free_bytes:
        return
    bucket = max(memory.peak_bytes, key=lambda bucket: memory.peak_bytes[bucket])
    fitting = max(1, free_bytes // memory.largest_bytes)
    raise PackageError(
        f"{manifest.name} takes {memory.largest_bytes / 1e6:.0f} MB for one {bucket.label} on each "
        f"of {plan.num_lanes} lanes, and {free_bytes / 1e6:.0f} MB are free: set lanes to "
        f"{fitting} or fewer, serve smaller sizes, or give the process more memory"
    )


def num_pool_threads(settings: Settings) -> int:
    """Threads that decode and encode: as set, or one for each CPU that this process may use.

    No more than can decode the largest images side by side in their share of the memory.
    """
    if settings.pool_threads is not None:
        return settings.pool_threads
    free_bytes = free_memory()
    threads = min(available_cpus(), MAX_LANES)
    if free_bytes is None:
        return threads
    image_bytes = DECODED_PIXEL_BYTES * settings.max_image_pixels
    return max(1, min(threads, int(free_bytes * MEMORY_SHARE) // image_bytes))


def lane_plan(
    settings: Settings,
    free_bytes: int | None,
    weights: tuple[int, int],
    *,
    device: Device,
    image_bytes: int = 0,
) -> LanePlan:
    """Lanes and threads as set, or as this machine is good for.

    Args:
        settings: Lanes and threads, where they are set.
        free_bytes: Of memory; None where it is not known.
        weights: As `weight_bytes` says.
        device: Where the lanes compute.
        image_bytes: That the largest image takes in a lane.
    """
    return plan_lanes(
        lanes=settings.lanes or (GPU_LANES if device == "gpu" else None),
        threads=settings.threads_per_lane,
        cpus=available_cpus(),
        free_bytes=free_bytes,
        lane_bytes=weights[0] + image_bytes,
        shared_bytes=weights[1],
    )


def warm_up(
    manifest: Manifest, lane: Lane, first_s: Mapping[Bucket, float], settings: Settings
) -> WarmUp:
    """Measure what batches cost on one lane, and choose their size where it is not set."""
    most_images = settings.max_batch_patches // num_patches(manifest.shape_buckets[0], manifest)
    rules = WarmUpRules(
        max_images=settings.max_batch_images,
        most_images=max(1, min(MAX_BATCH_IMAGES, most_images)),
        max_texts=settings.max_batch_texts,
        limit_s=settings.warm_up_limit_s,
    )
    return measure(lane, first_s, rules, time.monotonic)


def describe(plan: LanePlan, warm: WarmUp, memory: BatchMemory) -> dict[str, Any]:
    """What was chosen and measured, for the log."""
    curves = {
        bucket.label: {"intercept_s": round(c.intercept_s, 6), "slope_s": round(c.slope_s, 6)}
        for bucket, c in warm.curves.items()
    }
    return {
        "lanes": plan.num_lanes,
        "threads_per_lane": plan.num_threads,
        "max_batch_images": warm.max_images,
        "batch_cost": curves,
        "peak_bytes": {bucket.label: peak for bucket, peak in memory.peak_bytes.items()},
    }


def _load_lane(package: ModelPackage, load: Load, plan: LanePlan, buckets: list[Bucket]) -> Lane:
    """A lane that has run every shape once."""
    lane = _new_lane(package, load, plan, buckets)
    for bucket in with_maps(buckets, served_tasks(package.manifest, lane.runtime)):
        lane.run_synthetic(bucket)
    return lane


def _new_lane(package: ModelPackage, load: Load, plan: LanePlan, buckets: list[Bucket]) -> Lane:
    return Lane(
        partial(load, num_threads=plan.num_threads, num_lanes=plan.num_lanes),
        embed_dim=package.manifest.embed_dim,
        probe_bucket=buckets[0],
    )


# From a model package to a model that answers: verify, load one runtime for each lane, warm up.


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
        limits=HealthLimits(
            probe_interval_s=settings.watchdog_interval_s,
            hang_limit_s=settings.watchdog_hang_limit_s,
            dead_limit_s=settings.watchdog_dead_limit_s,
        ),
    )
    batcher.latency.set_measured(warm.curves, partial(item_cost, manifest))
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
