"""From a model package to a served model: verify, load the lanes, warm up."""

import logging
import math
import time
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Final

from model.general_words import GeneralWords, read_words
from model.graphs import DENSE_TASKS, DenseTask
from model.manifest import RECORDED_FILE, Manifest, ParityEntry
from model.package import ModelPackage, PackageError
from model.parity.measure import Reference
from model.parity.measure import describe as describe_parity
from model.parity.recorded import check_runtime, read_recorded
from model.runtime.base import (
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
from model.runtime.loaded_graphs import parity_in_use
from model.runtime.onnx_runtime import load_foreground
from model.runtime.tensorrt.cuda import free_gpu_memory
from model.text import TextTokenizer
from service.errors import ServiceError
from service.lanes.batching import Batcher, HealthLimits
from service.lanes.lane import Lane
from service.lanes.sizing import (
    MAX_LANES,
    MEMORY_PART,
    LanePlan,
    find_batch_size,
    patches_within,
    plan_lanes,
)
from service.lanes.work import BatchLimits, Bucket, Kind
from service.machine import (
    GpuMeter,
    PeakMeter,
    available_cpus,
    free_memory,
    returning_blocks_of_weights,
)
from service.messages import (
    MAX_CLASSES,
    MAX_IMAGES,
    MAX_TEXTS,
    BucketLimits,
    ModelInfo,
    RequestLimits,
)
from service.models.conversion import ModelSource, open_source
from service.models.served_model import ServedModel
from service.models.texts import TEXT_CACHE_BYTES, TextCache
from service.monitoring.metrics import Metrics
from service.patch_budget import PatchBudget
from service.settings import Settings

logger = logging.getLogger(__name__)
# Errors caused by a package, the machine or a setting: callers may see the reason.
CANNOT_LOAD: Final = (PackageError, MissingRuntimeError, UnusableRuntimeError)
WARM_UP_TOKENS: Final = 8
# An idle lane runs a trial batch after this time.
TRIAL_INTERVAL_S: Final = 10.0
MAX_BATCH_IMAGES: Final = 64
# For running every served size once at the start, and again for finding the size of batches. The
# native size of images, texts and each dense head and the largest image always run, so that their
# memory is known. Fast models need a fraction of it.
WARM_UP_LIMIT_S: Final = 2.0
# Runs of each batch size; the fastest counts, since other processes only slow a run down.
MAX_RUNS: Final = 3
# Before batches are measured.
ONE_BY_ONE: Final = BatchLimits(max_images=1, max_patches=0, max_tokens=0)


@dataclass(slots=True, kw_only=True)
class LoadedLanes:
    """Lanes that have run served shapes; the first one has measured them.

    Attributes:
        package: Its manifest has the parity entries that hold on this machine.
        choice: Chosen runtime.
        plan: Number of lanes, and of threads in each.
        settings: Of the process.
        lanes: The lanes, at first one.
        seconds: Of the first image or text of each shape that ran.
        peaks: Memory of one image of each shape that ran; empty if unknown.
        limits: Of batches.
    """

    package: ModelPackage
    choice: RuntimeChoice
    plan: LanePlan
    settings: Settings
    lanes: list[Lane] = field(default_factory=list)
    seconds: dict[Bucket, float] = field(default_factory=dict)
    peaks: dict[Bucket, int] = field(default_factory=dict)
    limits: BatchLimits = ONE_BY_ONE

    @property
    def largest_bytes(self) -> int:
        """Memory of the shape that needs most."""
        return max(self.peaks.values(), default=0)

    @property
    def parity(self) -> tuple[ParityEntry, ...]:
        """Measurements of the graphs in use."""
        return parity_in_use(self.package.manifest, self.choice.runtime, self.choice.precision)

    @property
    def native(self) -> Bucket:
        """Images of the native size."""
        return Bucket("image", self.package.manifest.shape_buckets[0])

    @property
    def has_max_batch_patches(self) -> bool:
        """Whether the operator bounds the patches of a batch."""
        return "max_batch_patches" in self.settings.model_fields_set

    def load_lane(self) -> Lane:
        """Load a further lane."""
        most = self.settings.max_batch_patches if self.has_max_batch_patches else None
        share = LaneShare(
            num_threads=self.plan.num_threads,
            num_lanes=self.plan.num_lanes,
            cache=self.settings.cache,
            max_batch_patches=most,
        )
        manifest = self.package.manifest
        return Lane(
            load_chosen(self.package, self.choice, share),
            embed_dim=manifest.embed_dim,
            trial_bucket=self.native,
            num_labels=len(manifest.segmentation_labels),
        )


def load_model(
    settings: Settings,
    metrics: Metrics,
    source: ModelSource,
    *,
    heads: Collection[DenseTask] | None = None,
) -> ServedModel:
    """Verify a package, load it, and run served shapes on every lane.

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
    words = read_words(package)
    try:
        with returning_blocks_of_weights():
            loaded = load_lanes(package, settings, source)
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
    return _serve(package, loaded, settings, metrics, words=words)


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
    """Load the lanes, run served shapes on each, and find the size of batches.

    The first lane is loaded alone, because its results may decide for another runtime, and because
    the memory of its images bounds the lanes and the batches.

    Raises:
        PackageError: A served shape exceeds a batch or the memory, or does not suit a dense head.
        WarmUpError: The runtime gives no usable results.
        Unavailable: The load was cancelled.
    """
    buckets = served_buckets(package.manifest, settings.max_batch_patches)
    free_bytes = free_memory()
    if free_bytes is not None:
        free_bytes //= source.num_loading
    loaded = load_checked(package, settings, buckets, free_bytes)
    if loaded.choice.device == "gpu":
        free_bytes = free_gpu_memory(in_use_bytes=loaded.largest_bytes)  # by the first lane
    num_others = fitting_lanes(loaded, free_bytes) - 1

    def load_lane(_: int) -> Lane:
        source.check()
        lane = loaded.load_lane()
        for bucket in natives(buckets).values():
            lane.run_synthetic(bucket)
        return lane

    # At the start all at once; later one by one, because other models need the processors.
    with ThreadPoolExecutor(1 if source.is_background else max(1, num_others)) as loaders:
        loaded.lanes += loaders.map(load_lane, range(num_others))
    source.check()
    loaded.limits = find_limits(loaded, free_bytes)
    for lane in loaded.lanes:
        lane.runtime.release_idle_memory()
    fields = {
        "lanes": len(loaded.lanes),
        "threads_per_lane": loaded.plan.num_threads,
        "max_batch_images": loaded.limits.max_images,
        "seconds": {bucket.label: round(s, 6) for bucket, s in loaded.seconds.items()},
        "peak_bytes": {bucket.label: peak for bucket, peak in loaded.peaks.items()},
    }
    logger.debug("measured", extra={"fields": fields})
    return loaded


def load_checked(
    package: ModelPackage, settings: Settings, buckets: Sequence[Bucket], free_bytes: int | None
) -> LoadedLanes:
    """Load the first lane with the fastest runtime whose results pass.

    The choice is compared with the reference outputs of the package, if its precision has no proof
    that holds here; if it fails, the next one is loaded. So it is if TensorRT, unless it was asked
    for, cannot build an engine or run it.

    Raises:
        PackageError: The reference outputs are damaged; else as `load_lanes`.
    """
    checks = Checks(are_possible=RECORDED_FILE in package.manifest.files)
    reference: Reference | None = None
    while True:
        choice = choose(package, settings, checks)
        is_due = checks.are_due(package.manifest, choice)
        if is_due and reference is None:
            reference = read_recorded(package)
        known = replace(package, manifest=checks.known(package.manifest, choice.place))
        try:
            first = _load_first(known, choice, settings, buckets=buckets, free_bytes=free_bytes)
        except Exception as error:  # TensorRT's bindings raise of all kinds
            if choice.runtime != "tensorrt" or settings.runtime != AUTO:
                raise
            logger.warning("TensorRT is not used: %s", error)
            checks = checks.without(choice.runtime, str(error).rstrip("."))
            continue
        if is_due and reference is not None:
            found = check_runtime(reference, known, choice, first.lanes[0].runtime)
            checks = checks.with_entries(choice, found)
            failed = [entry for entry in found if not entry.passed]
            for entry in failed:
                logger.warning("start check failed: %s", describe_parity(entry))
            if failed:
                first.lanes[0].runtime.close()
                continue
            known = replace(package, manifest=checks.known(package.manifest, choice.place))
            choice = choose(package, settings, checks)  # the same one, and that it has passed
        if choice.device == "gpu" and RECORDED_FILE not in package.manifest.files:
            logger.warning(
                "the results of this GPU are not checked, because the package has no reference "
                "outputs: export it again"
            )
        fields = {"model": package.manifest.name, **asdict(choice)}
        logger.info("runtime chosen", extra={"fields": fields})
        return replace(first, package=known, choice=choice)


def choose(package: ModelPackage, settings: Settings, checks: Checks = UNCHECKED) -> RuntimeChoice:
    """Choose the runtime by the settings, the machine, and what was measured on it.

    Raises:
        UnusableRuntimeError: The requested runtime does not work on this machine.
        MissingRuntimeError: Its library is not installed.
        PackageError: The package has no graph for it.
    """
    request = RuntimeRequest(
        runtime=settings.runtime, precision=settings.precision, device=settings.device
    )
    choice = choose_runtime(package, request, checks)
    if choice.device == "gpu" and settings.workers > 1:
        raise UnusableRuntimeError(
            f"{settings.workers} workers would each hold a CUDA context and engines on one "
            "GPU: set workers to 1, or device to cpu"
        )
    return choice


def _load_first(
    package: ModelPackage,
    choice: RuntimeChoice,
    settings: Settings,
    *,
    buckets: Sequence[Bucket],
    free_bytes: int | None,
) -> LoadedLanes:
    """Load a lane and run shapes once, to measure them.

    The native shape of each kind and the largest image always run, others as long as there is time:
    all shapes of all heads of B/14 take minutes. A runtime keeps its memory, so they run from small
    to large, which shows the peak of each.
    """
    manifest = package.manifest
    plan = plan_lanes(
        package,
        choice,
        lanes=settings.lanes,
        cpus=settings.cpus or available_cpus(),
        free_bytes=free_bytes,
    )
    loaded = LoadedLanes(package=package, choice=choice, plan=plan, settings=settings)
    lane = loaded.load_lane()
    loaded.lanes.append(lane)
    meter = GpuMeter() if lane.runtime.device == "gpu" else PeakMeter()
    cost = partial(item_cost, manifest)
    largest = max((b for b in buckets if b.is_image), key=cost)
    buckets = with_maps(buckets, manifest, lane.runtime)
    needed = {*natives(buckets).values(), largest}

    def run(bucket: Bucket) -> None:
        loaded.seconds[bucket] = lane.run_synthetic(bucket)

    until = time.monotonic() + WARM_UP_LIMIT_S
    for bucket in sorted(buckets, key=lambda b: (b.kind in DENSE_TASKS, cost(b))):
        if bucket in needed or time.monotonic() < until:
            peak_bytes = meter.peak_bytes(partial(run, bucket))
            if bucket.is_image and peak_bytes is not None:
                loaded.peaks[bucket] = peak_bytes
    return loaded


def fitting_lanes(first: LoadedLanes, free_bytes: int | None) -> int:
    """How many lanes can run their largest shape at the same time.

    Raises:
        PackageError: Fewer than are set, or none.
    """
    planned, needed = first.plan.num_lanes, first.largest_bytes
    if free_bytes is None or not needed:
        return planned
    if first.settings.lanes is None:  # the estimate may have been too low
        planned = max(1, min(planned, int(free_bytes * MEMORY_PART) // needed))
    if planned * needed <= free_bytes:
        return planned
    bucket = max(first.peaks, key=lambda bucket: first.peaks[bucket])
    raise PackageError(
        f"{first.package.manifest.name} takes {needed / 1e6:.0f} MB for one {bucket.label} on each "
        f"of {planned} lanes, and {free_bytes / 1e6:.0f} MB are free: set lanes to "
        f"{max(1, free_bytes // needed)} or fewer, serve smaller sizes, or give the process more "
        "memory"
    )


def natives(buckets: Sequence[Bucket]) -> dict[Kind, Bucket]:
    """The first shape of each kind."""
    return {bucket.kind: bucket for bucket in reversed(buckets)}


def find_limits(loaded: LoadedLanes, free_bytes: int | None) -> BatchLimits:
    """Find the number of images and patches in a batch, on the first lane, if they are not set."""
    manifest, settings, native = loaded.package.manifest, loaded.settings, loaded.native
    most_patches, fitting = settings.max_batch_patches, None
    if free_bytes is not None:
        lane_bytes = int(free_bytes * MEMORY_PART) // len(loaded.lanes)
        fitting = patches_within(lane_bytes, loaded.peaks, partial(item_cost, manifest))
    if fitting is not None:
        # The default is four images of 448 x 448: it does not bind a GPU whose memory was measured.
        if loaded.choice.device == "gpu" and not loaded.has_max_batch_patches:
            most_patches = settings.max_queue_patches
        most_patches = min(most_patches, fitting)
    most_images = settings.max_batch_images
    until = time.monotonic() + WARM_UP_LIMIT_S

    def run(num_images: int) -> float | None:
        seconds: list[float] = []
        while len(seconds) < MAX_RUNS and time.monotonic() < until:
            seconds.append(loaded.lanes[0].run_synthetic(native, num_images))
        if seconds and num_images == 1:
            loaded.seconds[native] = min(seconds)
        return min(seconds, default=None)

    if most_images is not None:
        run(1)  # for the time of an image alone
    else:
        most = max(1, min(MAX_BATCH_IMAGES, most_patches // item_cost(manifest, native)))
        most_images = find_batch_size(run, most)
        # More patches than those of a full batch of the native size make an image no cheaper, and
        # later requests wait for all of them.
        native_patches = (manifest.native_size // manifest.patch_size) ** 2
        most_patches = min(most_patches, most_images * native_patches)
    return BatchLimits(
        max_images=most_images, max_patches=most_patches, max_tokens=settings.max_batch_patches
    )


def served_buckets(manifest: Manifest, max_patches: int) -> list[Bucket]:
    """The image and text shapes to warm up, without dense heads; see `with_maps`.

    Raises:
        PackageError: A single image exceeds the limit of a batch.
    """
    shapes = [Bucket("image", shape) for shape in manifest.shape_buckets]
    for bucket in shapes:
        needed = item_cost(manifest, bucket)
        if needed > max_patches:
            height, width = bucket.shape
            raise PackageError(
                f"{manifest.name} serves {height} x {width} pixels, which are {needed} "
                f"patches; raise max_batch_patches above {max_patches}"
            )
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
    return math.prod(bucket.shape) // (manifest.patch_size**2 if bucket.is_image else 1)


def _serve(
    package: ModelPackage,
    loaded: LoadedLanes,
    settings: Settings,
    metrics: Metrics,
    *,
    words: GeneralWords | None,
) -> ServedModel:
    """Start the batcher over warmed lanes."""
    manifest, lanes = package.manifest, loaded.lanes
    runtime = lanes[0].runtime
    batcher = Batcher(
        lanes,
        limits=loaded.limits,
        # Lanes of a CPU run in parallel, and a large batch is no cheaper than small ones.
        split_evenly=runtime.device == "cpu",
        metrics=metrics,
        health=HealthLimits(
            trial_interval_s=TRIAL_INTERVAL_S, hang_limit_s=settings.watchdog_hang_limit_s
        ),
    )
    info = ModelInfo(
        manifest=manifest,
        runtime=runtime.name,
        precision=runtime.precision,
        device=runtime.device,
        runtime_reason=loaded.choice.reason,
        limits=request_limits(settings),
        buckets=bucket_limits(loaded),
        tasks=served_tasks(manifest, runtime),
        parity=loaded.parity,
        words=words,
        foreground=load_foreground(package, words),
    )
    batcher.start()
    served = ServedModel(
        info,
        tokenizer=TextTokenizer.from_package(package),
        batcher=batcher,
        lanes=lanes,
        cache=TextCache(TEXT_CACHE_BYTES, metrics),
        budget=PatchBudget(settings.max_queue_patches, metrics, batcher),
    )
    served.patch_s = loaded.seconds[loaded.native] / item_cost(manifest, loaded.native)
    return served


def bucket_limits(loaded: LoadedLanes) -> tuple[BucketLimits, ...]:
    """Measurements and batch limit of each served image shape.

    The first image of a shape may have waited for a runtime that compiles, so its time counts at
    most as the square of its size; the time of a shape that did not run is estimated.
    """
    manifest, seconds, peaks = loaded.package.manifest, loaded.seconds, loaded.peaks
    native = loaded.native
    limits = []
    for height, width in manifest.shape_buckets:
        bucket = Bucket("image", (height, width))
        cost = item_cost(manifest, bucket)
        size = cost / item_cost(manifest, native)
        run_s = seconds.get(bucket, seconds[native] * size)
        run_s = min(run_s, seconds[native] * max(size, size**2))
        limits.append(
            BucketLimits(
                height=height,
                width=width,
                max_batch_images=max(
                    1, min(loaded.limits.max_images, loaded.limits.max_patches // cost)
                ),
                run_s=round(run_s, 6),
                peak_bytes=peaks.get(bucket),
            )
        )
    return tuple(limits)


def request_limits(settings: Settings) -> RequestLimits:
    """The settings that bound one request."""
    return RequestLimits(
        max_images=MAX_IMAGES,
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
