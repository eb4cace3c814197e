"""From a model package to a served model: verify, load the lanes, warm up."""

import logging
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Final

from model.graphs import DENSE_TASKS, DenseTask
from model.manifest import RECORDED_FILE
from model.package import Manifest, ModelPackage, PackageError, ParityEntry
from model.parity.measure import Reference
from model.parity.measure import describe as describe_parity
from model.parity.recorded import check_runtime, read_recorded
from model.runtime.base import (
    Device,
    LaneShare,
    MissingRuntimeError,
    Runtime,
    UnusableRuntimeError,
    is_out_of_memory,
)
from model.runtime.choice import (
    AUTO,
    UNCHECKED,
    Checks,
    RuntimeChoice,
    RuntimeRequest,
    choose_runtime,
)
from model.runtime.load import load_chosen
from model.runtime.loaded_graphs import loaded_graphs, parity_in_use
from model.runtime.tensorrt.cuda import free_gpu_memory
from model.text import TextTokenizer
from service.admission import PatchBudget
from service.errors import ServiceError
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
from service.machine import (
    GpuMeter,
    PeakMeter,
    available_cpus,
    free_memory,
    returning_blocks_of_weights,
)
from service.messages import MAX_CLASSES, MAX_TEXTS, BucketLimits, ModelInfo, RequestLimits
from service.models.conversion import ModelSource, open_source
from service.models.served_model import ServedModel
from service.models.texts import TEXT_CACHE_BYTES, TextCache
from service.monitoring.metrics import Metrics
from service.settings import Settings

logger = logging.getLogger(__name__)
# Errors caused by a package, the machine or a setting: callers may see the reason.
CANNOT_LOAD: Final = (PackageError, MissingRuntimeError, UnusableRuntimeError)
WARM_UP_TOKENS: Final = 8
MAX_BATCH_IMAGES: Final = 64
# One lane copies its images to the device while the other computes.
GPU_LANES: Final = 2
MAX_BATCH_TEXTS: Final = 64
# Loads the runtime of a lane, given `num_threads` and `num_lanes`.
Load = Callable[..., Runtime]


@dataclass(frozen=True, slots=True)
class FirstLane:
    """The first lane of a model, which has run served shapes.

    Attributes:
        package: Its manifest has the parity entries that hold on this machine.
        choice: Chosen runtime.
        load: Loads the runtime of a lane.
        plan: Number of lanes, and of threads in each.
        lane: The lane.
        first_s: Seconds of the first image of each shape.
        memory: Memory of single images.
    """

    package: ModelPackage
    choice: RuntimeChoice
    load: Load
    plan: LanePlan
    lane: Lane
    first_s: Mapping[Bucket, float]
    memory: BatchMemory

    def has_loaded(self, package: ModelPackage, choice: RuntimeChoice) -> bool:
        """Whether a choice would load what is loaded."""
        wanted, found = (
            (c.place, loaded_graphs(p.manifest, c.runtime, c.precision))
            for p, c in ((package, choice), (self.package, self.choice))
        )
        return wanted == found


@dataclass(frozen=True, slots=True)
class LoadedLanes:
    """Lanes that have run served shapes, and the measurements of one of them.

    Attributes:
        lanes: The lanes.
        choice: Their runtime.
        parity: Measurements of its graphs.
        warm: Time of batches.
        memory: Memory of single images.
        max_patches: Most patches that fit a lane's memory, per kind of image batch; unknown kinds
            are missing.
    """

    lanes: Sequence[Lane]
    choice: RuntimeChoice
    parity: tuple[ParityEntry, ...]
    warm: WarmUp
    memory: BatchMemory
    max_patches: Mapping[Kind, int]


def load_model(
    settings: Settings,
    metrics: Metrics,
    source: ModelSource,
    *,
    heads: Collection[DenseTask] | None = None,
) -> ServedModel:
    """Verify a package, load it, and run served shapes on every lane; see `shapes_to_run`.

    A checkpoint is converted first.

    Args:
        settings: Of the process.
        metrics: Of the process.
        source: The model.
        heads: The dense heads to load, with the native size only; None loads all, and all sizes.

    Raises:
        PackageError: There is no such model, it cannot be converted, its package is broken, or a
            served shape does not fit into a batch.
        WarmUpError: The runtime gives no usable results.
        MissingRuntimeError: The runtime's library is not installed.
        UnusableRuntimeError: The requested runtime does not work on this machine.
        Unavailable: The load was cancelled.
    """
    package = open_source(source)
    manifest = with_sizes(package.manifest, settings.sizes)
    if heads is not None:
        manifest = with_heads(package.manifest, heads)
    if source.name is not None:
        manifest = manifest.model_copy(update={"name": source.name})
    package = replace(package, manifest=manifest)
    try:
        with returning_blocks_of_weights():
            lanes = load_lanes(package, settings, source)
    except (*CANNOT_LOAD, ServiceError):
        raise
    except Exception as error:
        # Each runtime has exceptions of its own for a graph that it does not accept.
        logger.warning("the runtime failed", exc_info=error)
        if is_out_of_memory(error):
            raise UnusableRuntimeError(
                f"the memory is full while {manifest.name} is loaded: use fewer lanes, smaller "
                "batches or another precision, or end what else runs there. The log has the "
                "runtime's own message"
            ) from error
        raise PackageError(
            f"the runtime cannot load or compute the graphs of {manifest.name}: an operator is "
            "unknown, a tensor is too large, or a graph is damaged; export the model again. The "
            "log has the runtime's own message"
        ) from error
    return serve_lanes(package, lanes, settings, metrics)


def with_sizes(manifest: Manifest, sizes: Sequence[tuple[int, int]]) -> Manifest:
    """Add (height, width) sizes to the served shapes of a manifest.

    Raises:
        PackageError: The model does not accept one of the sizes.
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


def with_heads(manifest: Manifest, heads: Collection[DenseTask]) -> Manifest:
    """Leave only the native size and these dense heads in a manifest."""
    left_out = set(DENSE_TASKS) - set(heads)
    outputs = [name for name in manifest.outputs if name not in left_out]
    native = [(manifest.native_size, manifest.native_size)]
    return manifest.model_copy(update={"outputs": outputs, "shape_buckets": native})


def load_lanes(package: ModelPackage, settings: Settings, source: ModelSource) -> LoadedLanes:
    """Load the lanes, run served shapes on each, and measure the cost of batches.

    The first lane is loaded alone, because the memory of its images decides the number of lanes,
    and because its results may decide for another runtime.

    Raises:
        PackageError: A served shape exceeds a batch or the memory, or does not suit a dense head.
        WarmUpError: The runtime gives no usable results.
        Unavailable: The load was cancelled.
    """
    manifest = package.manifest
    buckets = served_buckets(manifest, settings.max_batch_patches)
    free_bytes = free_memory()
    if free_bytes is not None:
        free_bytes //= source.num_loading
    started = load_checked_lane(package, settings, buckets, free_bytes)
    choice, memory, plan = started.choice, started.memory, started.plan
    if choice.device == "gpu":
        free_bytes = free_gpu_memory(in_use_bytes=memory.largest_bytes)  # by the first lane
    check_memory(manifest, plan, memory, free_bytes)
    max_patches = most_patches(manifest, plan, memory, free_bytes)
    limit_s = settings.warm_up_limit_s

    def load_lane(_: int) -> Lane:
        source.check()
        lane = _new_lane(started.package, started.load, plan, buckets)
        served = with_maps(buckets, manifest, lane.runtime)
        for bucket in shapes_to_run(served, manifest, set(natives(buckets).values()), limit_s):
            lane.run_synthetic(bucket)
        return lane

    # At the start all at once; later one by one, because other models need the processors.
    num_others = plan.num_lanes - 1
    with ThreadPoolExecutor(1 if source.is_background else max(1, num_others)) as loaders:
        lanes = [started.lane, *loaders.map(load_lane, range(num_others))]
    source.check()
    began = time.monotonic()
    warm = warm_up(manifest, started.lane, started.first_s, settings, max_patches=max_patches)
    for lane in lanes:
        lane.runtime.release_idle_memory()
    chosen = describe(plan, warm, memory) | {"seconds": round(time.monotonic() - began, 3)}
    logger.info("measured", extra={"fields": chosen})
    parity = parity_in_use(started.package.manifest, choice.runtime, choice.precision)
    return LoadedLanes(lanes, choice, parity, warm, memory, max_patches)


def load_checked_lane(
    package: ModelPackage, settings: Settings, buckets: list[Bucket], free_bytes: int | None
) -> FirstLane:
    """Load the first lane with the fastest runtime whose results pass.

    The choice is compared with the reference outputs of the package, if its precision has no proof
    that holds here; if it fails, the next one is loaded. So it is if TensorRT, unless it was asked
    for, cannot build an engine or run it.

    Raises:
        PackageError: The reference outputs are damaged; else as `load_lanes`.
    """
    has_reference = RECORDED_FILE in package.manifest.files
    checks = Checks(are_possible=has_reference)
    reference: Reference | None = None
    first: FirstLane | None = None
    while True:
        choice = choose(package, settings, checks)
        is_due = checks.are_due(package.manifest, choice)
        if is_due and reference is None:
            reference = read_recorded(package)
        known = replace(package, manifest=checks.known(package.manifest, choice.place))
        if first is None or not first.has_loaded(known, choice):
            if first is not None:
                first.lane.runtime.close()
            try:
                first = _load_first(known, settings, choice, buckets, free_bytes=free_bytes)
            except Exception as error:  # TensorRT's bindings raise of all kinds
                if choice.runtime != "tensorrt" or settings.runtime != AUTO:
                    raise
                logger.warning("TensorRT is not used: %s", error)
                first, checks = None, checks.without(choice.runtime, str(error).rstrip("."))
                continue
        if reference is None or not is_due:
            _log_choice(package, choice, has_reference=has_reference)
            return replace(first, package=known, choice=choice)
        found = check_runtime(reference, known, choice, first.lane.runtime)
        for entry in found:
            if not entry.passed:
                logger.warning("start check failed: %s", describe_parity(entry))
        checks = checks.with_entries(choice, found)


def _load_first(
    package: ModelPackage,
    settings: Settings,
    choice: RuntimeChoice,
    buckets: list[Bucket],
    *,
    free_bytes: int | None,
) -> FirstLane:
    """Load a lane of the size that fits, which is known when one was measured."""
    is_set = "max_batch_patches" in settings.model_fields_set
    share = LaneShare(
        cache=settings.cache, max_batch_patches=settings.max_batch_patches if is_set else None
    )
    load = partial(load_chosen, package, choice, share)
    weights = weight_bytes(package, choice)
    plan = lane_plan(settings, free_bytes, weights, device=choice.device)
    limit_s = settings.warm_up_limit_s
    lane, first_s, memory = load_first_lane(package, load, plan, buckets, limit_s=limit_s)
    fitting = lane_plan(
        settings, free_bytes, weights, device=choice.device, image_bytes=memory.largest_bytes
    )
    if fitting != plan:
        lane.runtime.close()
        lane, first_s, _ = load_first_lane(
            package, load, fitting, buckets, limit_s=limit_s, measures_memory=False
        )
    return FirstLane(package, choice, load, fitting, lane, first_s, memory)


def choose(package: ModelPackage, settings: Settings, checks: Checks = UNCHECKED) -> RuntimeChoice:
    """Choose the runtime by the settings, the machine, and what was measured on it.

    Raises:
        UnusableRuntimeError: The requested runtime does not work on this machine.
        MissingRuntimeError: Its library is not installed.
        PackageError: The package has no graph for it.
    """
    request = RuntimeRequest(
        runtime=settings.runtime,
        precision=settings.precision,
        device=settings.device,
        provider=settings.onnx_provider,
        tf32=settings.tf32,
    )
    choice = choose_runtime(package, request, checks)
    if choice.device == "gpu" and settings.num_workers > 1:
        raise UnusableRuntimeError(
            f"{settings.num_workers} workers would each hold a CUDA context and engines on one "
            "GPU: set workers to 1, or device to cpu"
        )
    return choice


def _log_choice(package: ModelPackage, choice: RuntimeChoice, *, has_reference: bool) -> None:
    if choice.device == "gpu" and not has_reference:
        logger.warning(
            "the results of this GPU are not checked, because the package has no reference "
            "outputs: export it again"
        )
    fields = {"model": package.manifest.name, **asdict(choice)}
    logger.info("runtime chosen", extra={"fields": fields})


def lane_plan(
    settings: Settings,
    free_bytes: int | None,
    weights: tuple[int, int],
    *,
    device: Device,
    image_bytes: int = 0,
) -> LanePlan:
    """Lanes and threads as set, or chosen for this machine.

    Args:
        settings: May set lanes and threads.
        free_bytes: Free memory; None if unknown.
        weights: From `weight_bytes`.
        device: Device of the lanes.
        image_bytes: Memory of the largest image in a lane.
    """
    return plan_lanes(
        lanes=settings.lanes or (GPU_LANES if device == "gpu" else None),
        threads=settings.threads_per_lane,
        cpus=settings.cpus or available_cpus(),
        free_bytes=free_bytes,
        lane_bytes=weights[0] + image_bytes,
        shared_bytes=weights[1],
    )


def load_first_lane(
    package: ModelPackage,
    load: Load,
    plan: LanePlan,
    buckets: list[Bucket],
    *,
    limit_s: float,
    measures_memory: bool = True,
) -> tuple[Lane, dict[Bucket, float], BatchMemory]:
    """Load a lane and run shapes once; returns it with time and peak memory per shape.

    The time of a shape that did not run is estimated from the native one. The native shape of each
    kind does run. If memory is measured, so do the largest image and the largest map of the head
    that takes most: with all heads of B/14 the largest maps took a third of the start.
    """
    lane = _new_lane(package, load, plan, buckets)
    meter = GpuMeter() if lane.runtime.device == "gpu" else PeakMeter()
    first_s: dict[Bucket, float] = {}
    peaks: dict[Bucket, int] = {}
    manifest = package.manifest
    buckets = with_maps(buckets, manifest, lane.runtime)
    cost = partial(item_cost, manifest)
    native = natives(buckets)

    def run(bucket: Bucket) -> None:
        began = time.monotonic()
        peak_bytes = meter.peak_bytes(partial(lane.run_synthetic, bucket))
        first_s[bucket] = time.monotonic() - began
        if bucket.is_image and peak_bytes is not None:
            peaks[bucket] = peak_bytes

    def largest(kind: Kind) -> Bucket:
        return max((b for b in buckets if b.kind == kind), key=cost)

    needed = {*native.values(), *([largest("image")] if measures_memory else ())}
    for bucket in shapes_to_run(buckets, manifest, needed, limit_s):
        run(bucket)
    heads = [bucket for bucket in peaks if bucket in native.values() and bucket.kind != "image"]
    if measures_memory and heads:
        most = largest(max(heads, key=lambda bucket: peaks[bucket]).kind)
        if most not in first_s:
            run(most)
    times = {b: first_s.get(b) or first_s[n := native[b.kind]] * cost(b) / cost(n) for b in buckets}
    return lane, times, BatchMemory(peaks)


def natives(buckets: Sequence[Bucket]) -> dict[Kind, Bucket]:
    """The first shape of each kind."""
    return {bucket.kind: bucket for bucket in reversed(buckets)}


def shapes_to_run(
    buckets: Sequence[Bucket], manifest: Manifest, needed: Set[Bucket], limit_s: float
) -> Iterator[Bucket]:
    """Yield the shapes to run once, from small to large; after `limit_s` only the needed ones.

    A runtime keeps its memory, so only this order shows the peak of each shape. With B/14 the first
    image of another shape takes a few percent longer than the next one, but all shapes of all heads
    took minutes of each start.
    """
    until = time.monotonic() + limit_s

    def size(bucket: Bucket) -> tuple[bool, int]:
        return bucket.kind in DENSE_TASKS, item_cost(manifest, bucket)

    for bucket in sorted(buckets, key=size):
        if bucket in needed or time.monotonic() < until:
            yield bucket


def _new_lane(package: ModelPackage, load: Load, plan: LanePlan, buckets: list[Bucket]) -> Lane:
    return Lane(
        partial(load, num_threads=plan.num_threads, num_lanes=plan.num_lanes),
        embed_dim=package.manifest.embed_dim,
        probe_bucket=buckets[0],
        num_labels=len(package.manifest.segmentation_labels),
    )


def check_memory(
    manifest: Manifest, plan: LanePlan, memory: BatchMemory, free_bytes: int | None
) -> None:
    """Check that all lanes can run their largest shape at the same time.

    Raises:
        PackageError: There is too little memory.
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


def warm_up(
    manifest: Manifest,
    lane: Lane,
    first_s: Mapping[Bucket, float],
    settings: Settings,
    *,
    max_patches: Mapping[Kind, int],
) -> WarmUp:
    """Measure batches on one lane, and choose their size if it is not set.

    Args:
        manifest: Has the native shape.
        lane: The lane.
        first_s: Seconds of the first image of each shape.
        settings: May set the size.
        max_patches: Patches that fit a lane's memory, by kind.
    """
    most = patch_limit(lane.runtime.device, max_patches, settings)
    if "image" in max_patches:
        most = min(most, max_patches["image"])
    most_images = most // num_patches(manifest.shape_buckets[0], manifest)
    rules = WarmUpRules(
        max_images=settings.max_batch_images,
        most_images=max(1, min(MAX_BATCH_IMAGES, most_images)),
        max_texts=MAX_BATCH_TEXTS,
        limit_s=settings.warm_up_limit_s,
    )
    return measure(lane, first_s, rules, time.monotonic)


def describe(plan: LanePlan, warm: WarmUp, memory: BatchMemory) -> dict[str, Any]:
    """The choices and measurements for the log."""
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


def most_patches(
    manifest: Manifest, plan: LanePlan, memory: BatchMemory, free_bytes: int | None
) -> dict[Kind, int]:
    """Most patches of an image batch of each lane, for each kind for which that is known."""
    if free_bytes is None:
        return {}
    budget_bytes = int(free_bytes * MEMORY_SHARE) // plan.num_lanes
    known = {
        kind: memory.patches_within(budget_bytes, partial(item_cost, manifest), kind)
        for kind in IMAGE_WORK
    }
    return {kind: patches for kind, patches in known.items() if patches is not None}


def served_buckets(manifest: Manifest, max_patches: int) -> list[Bucket]:
    """The image and text shapes to warm up, without dense heads; see `with_maps`.

    Raises:
        PackageError: A single image exceeds the limit of a batch.
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


def served_tasks(manifest: Manifest, runtime: Runtime) -> tuple[DenseTask, ...]:
    """The dense heads that the package has and its runtime computes.

    Packages of earlier versions do not name the classes of their segmentation head.
    """
    unnamed = set() if manifest.segmentation_labels else {"segmentation"}
    known = set(manifest.outputs) - unnamed
    return tuple(task for task in DENSE_TASKS if task in known and task in runtime.tasks)


def with_maps(buckets: Sequence[Bucket], manifest: Manifest, runtime: Runtime) -> list[Bucket]:
    """Add the image shapes of each dense head to the shapes to warm up."""
    tasks = served_tasks(manifest, runtime)
    return [*buckets, *(Bucket(task, shape) for task in tasks for shape in manifest.map_buckets)]


def item_cost(manifest: Manifest, bucket: Bucket) -> int:
    """Patches of an image, or tokens of a text."""
    return num_patches(bucket.shape, manifest) if bucket.is_image else bucket.shape[0]


def num_patches(shape: tuple[int, ...], manifest: Manifest) -> int:
    """Patches of an image of this height and width in pixels."""
    return math.prod(shape) // manifest.patch_size**2


def serve_lanes(
    package: ModelPackage, loaded: LoadedLanes, settings: Settings, metrics: Metrics
) -> ServedModel:
    """Start the batcher over warmed lanes."""
    manifest, lanes, warm = package.manifest, loaded.lanes, loaded.warm
    runtime = lanes[0].runtime
    most_patches = patch_limit(runtime.device, loaded.max_patches, settings)
    budget = image_budget(manifest, warm.max_images, most_patches, settings)
    limits = batch_limits(warm.max_images, budget, loaded.max_patches, settings)
    is_cpu = runtime.device == "cpu"
    batcher = Batcher(
        lanes,
        rules=BatchRules(
            limits=limits,
            max_wait_s=settings.max_queue_delay_s,
            # Lanes of a CPU run in parallel, and a large batch is no cheaper than small ones.
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
        parity=loaded.parity,
    )
    batcher.start()
    return ServedModel(
        info,
        tokenizer=TextTokenizer.from_package(package),
        batcher=batcher,
        lanes=lanes,
        cache=TextCache(TEXT_CACHE_BYTES, metrics),
        budget=PatchBudget(settings.max_queue_patches, metrics, batcher),
    )


def patch_limit(device: Device, max_patches: Mapping[Kind, int], settings: Settings) -> int:
    """Most patches of one image batch by the settings.

    On a GPU whose memory was measured the default does not bind: it is four images of 448 x 448.
    """
    is_set = "max_batch_patches" in settings.model_fields_set
    if device == "gpu" and "image" in max_patches and not is_set:
        return settings.max_queue_patches
    return settings.max_batch_patches


def image_budget(manifest: Manifest, max_images: int, most_patches: int, settings: Settings) -> int:
    """Most patches of one image batch; one larger image still runs alone.

    If the number of images was measured, more patches than those of a full batch of the native size
    make an image no cheaper, and later requests wait for all of them.

    Args:
        manifest: Has the native size.
        max_images: Most images in a batch.
        most_patches: From `patch_limit`.
        settings: Says whether the number of images was set.
    """
    if settings.max_batch_images is not None:
        return most_patches
    native_patches = (manifest.native_size // manifest.patch_size) ** 2
    return min(most_patches, max_images * native_patches)


def batch_limits(
    max_images: int, budget: int, known: Mapping[Kind, int], settings: Settings
) -> dict[Kind, BatchLimits]:
    """Limits of a batch, by kind.

    Args:
        max_images: Most images to embed.
        budget: Most patches of images to embed.
        known: Patches that fit a lane's memory, by kind.
        settings: Has the limits of texts.
    """
    images = {
        kind: BatchLimits(
            max_items=max(1, max_images // work),
            max_cost=min([budget // work, *(known[k] for k in known if k in kind.split("+"))]),
        )
        for kind, work in IMAGE_WORK.items()
    }
    texts = BatchLimits(max_items=MAX_BATCH_TEXTS, max_cost=settings.max_batch_patches)
    return {**images, "text": texts}


def bucket_limits(
    manifest: Manifest, loaded: LoadedLanes, max_patches: int
) -> tuple[BucketLimits, ...]:
    """Measurements and batch limit of each served image shape."""
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


def request_limits(settings: Settings) -> RequestLimits:
    """The settings that bound one request."""
    return RequestLimits(
        max_images=settings.max_images_per_request,
        max_texts=MAX_TEXTS,
        max_classes=MAX_CLASSES,
        max_image_bytes=settings.max_image_bytes,
        max_image_pixels=settings.max_image_pixels,
        max_request_bytes=settings.max_request_bytes,
        max_answer_bytes=settings.max_answer_bytes,
        max_work_memory_bytes=settings.max_work_memory_bytes,
    )


def num_pool_threads(settings: Settings) -> int:
    """Threads that decode and encode: as set, or one per CPU."""
    return settings.pool_threads or min(settings.cpus or available_cpus(), MAX_LANES)
