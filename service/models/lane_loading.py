"""A package's lanes: as many as the machine is good for, each tried out, and measured on one."""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from model.package import Manifest, ModelPackage, PackageError
from model.runtime.load import load_runtime
from service.lanes.cpu_limit import available_cpus
from service.lanes.lane import Lane
from service.lanes.lane_plan import MAX_LANES, LanePlan, free_memory, lane_bytes, plan_lanes
from service.lanes.warm_up import WarmUp, WarmUpRules, measure
from service.lanes.work import Bucket
from service.models.model_source import ModelSource
from service.settings import Settings

MAX_BATCH_IMAGES: Final = 64
WARM_UP_TOKENS: Final = 8

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedLanes:
    """Lanes that have run every served shape, and what one of them measured."""

    lanes: Sequence[Lane]
    warm: WarmUp


def load_lanes(package: ModelPackage, settings: Settings, source: ModelSource) -> LoadedLanes:
    """Load a runtime for each lane, run every served shape on it, and measure what batches cost.

    Raises:
        PackageError: A served shape does not fit into a batch.
        WarmUpError: The runtime gives no usable embeddings.
        Unavailable: The load was cancelled.
    """
    manifest = package.manifest
    buckets = served_buckets(manifest, settings.max_batch_patches)
    plan = lane_plan(settings, package)

    def load_lane(_: int) -> tuple[Lane, dict[Bucket, float]]:
        source.check()
        return _load_lane(package, settings, plan, buckets)

    # At the start all lanes at once; later one by one, for other models need the processors.
    with ThreadPoolExecutor(1 if source.is_background else plan.num_lanes) as loaders:
        lanes, first_s = zip(*loaders.map(load_lane, range(plan.num_lanes)), strict=True)
    source.check()
    began = time.monotonic()
    warm = warm_up(manifest, lanes[0], first_s[0], settings)
    chosen = describe(plan, warm) | {"seconds": round(time.monotonic() - began, 3)}
    logger.info("measured", extra={"fields": chosen})
    return LoadedLanes(lanes, warm)


def num_pool_threads(settings: Settings) -> int:
    """Threads that decode and encode: as set, or one for each CPU that this process may use."""
    return settings.pool_threads or min(available_cpus(), MAX_LANES)


def lane_plan(settings: Settings, package: ModelPackage) -> LanePlan:
    """Lanes and threads as set, or as this machine is good for."""
    return plan_lanes(
        lanes=settings.lanes,
        threads=settings.threads_per_lane,
        cpus=available_cpus(),
        free_bytes=free_memory(),
        lane_bytes=lane_bytes(package),
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


def describe(plan: LanePlan, warm: WarmUp) -> dict[str, Any]:
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
    }


def num_patches(shape: tuple[int, ...], manifest: Manifest) -> int:
    """Patches of a picture of this height and width in pixels."""
    return math.prod(shape) // manifest.patch_size**2


def served_buckets(manifest: Manifest, max_patches: int) -> list[Bucket]:
    """The shapes that are warmed up.

    Raises:
        PackageError: A picture of one of them is more than a batch may hold.
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


def item_cost(manifest: Manifest, bucket: Bucket) -> int:
    """Patches of a picture, tokens of a text."""
    return bucket.shape[0] if bucket.kind == "text" else num_patches(bucket.shape, manifest)


def _load_lane(
    package: ModelPackage, settings: Settings, plan: LanePlan, buckets: list[Bucket]
) -> tuple[Lane, dict[Bucket, float]]:
    """A lane that has run every shape once, and the seconds that each took."""
    lane = Lane(
        partial(load_runtime, package, runtime=settings.runtime, num_threads=plan.num_threads),
        embed_dim=package.manifest.embed_dim,
        probe_bucket=buckets[0],
    )
    first_s: dict[Bucket, float] = {}
    for bucket in buckets:
        began = time.monotonic()
        lane.try_out(bucket)
        first_s[bucket] = time.monotonic() - began
    return lane, first_s
