"""A package's lanes: as many as the machine is good for, each tried out, and measured on one."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Final

from model.package import Manifest, ModelPackage, PackageError
from model.runtime.base import Device, Runtime
from model.runtime.choice import RuntimeChoice, RuntimeRequest, choose_runtime
from model.runtime.load import load_chosen
from service.lanes.batch_memory import BatchMemory, PeakMeter
from service.lanes.cpu_limit import available_cpus
from service.lanes.lane import Lane
from service.lanes.lane_plan import (
    MAX_LANES,
    MEMORY_SHARE,
    LanePlan,
    free_memory,
    plan_lanes,
    weight_bytes,
)
from service.lanes.warm_up import IMAGE_WORK, WarmUp, WarmUpRules, measure
from service.lanes.work import Bucket, Kind
from service.messages import MAP_TASKS
from service.models.model_source import ModelSource
from service.models.served_shapes import (
    item_cost,
    num_patches,
    served_buckets,
    served_tasks,
    with_maps,
)
from service.settings import Settings

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
        peak_bytes = meter.peak_bytes(partial(lane.try_out, bucket))
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
        lane.try_out(bucket)
    return lane


def _new_lane(package: ModelPackage, load: Load, plan: LanePlan, buckets: list[Bucket]) -> Lane:
    return Lane(
        partial(load, num_threads=plan.num_threads, num_lanes=plan.num_lanes),
        embed_dim=package.manifest.embed_dim,
        probe_bucket=buckets[0],
    )
