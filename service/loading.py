"""From a model package to a model that answers: verify, load one runtime for each lane, warm up."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

from model.package import Manifest, ModelPackage, open_package
from model.runtime.load import load_runtime
from model.text import TextTokenizer
from service.admission import Admission
from service.batch_queue import BatchRules
from service.batching import Batcher
from service.cpu_limit import available_cpus
from service.lane import Lane
from service.lane_worker import LaneCare
from service.messages import ModelInfo, RequestLimits
from service.observability import Metrics
from service.served_model import ServedModel
from service.settings import Settings
from service.text_cache import TextCache
from service.work import BatchLimits, Bucket

MAX_DEFAULT_LANES = 8
WARM_UP_TOKENS = 8


def num_lanes(settings: Settings) -> int:
    """Lanes as set, or one for each CPU that this process may use."""
    return settings.lanes or min(available_cpus(), MAX_DEFAULT_LANES)


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


def load_model(settings: Settings, metrics: Metrics) -> ServedModel:
    """Load the model that the settings name and run one batch of each served shape on every lane.

    Raises:
        PackageError: There is no such package, or it is broken.
        ValueError: A served shape does not fit into a batch.
        WarmUpError: The runtime gives no usable embeddings.
    """
    package = open_package(settings.model)
    buckets = served_buckets(package.manifest, settings.max_batch_patches)
    with ThreadPoolExecutor(num_lanes(settings)) as loaders:
        jobs = [
            loaders.submit(_load_lane, package, settings, buckets)
            for _ in range(num_lanes(settings))
        ]
    lanes = [job.result() for job in jobs]
    return serve_lanes(package, lanes, settings, metrics)


def served_buckets(manifest: Manifest, max_patches: int) -> list[Bucket]:
    """The shapes that are warmed up.

    Raises:
        ValueError: A picture of one of them is more than a batch may hold.
    """
    for height, width in manifest.shape_buckets:
        num_patches = height * width // manifest.patch_size**2
        if num_patches > max_patches:
            raise ValueError(
                f"{manifest.name} serves {height} x {width} pixels, which are {num_patches} "
                f"patches; raise max_batch_patches above {max_patches}"
            )
    shapes = [Bucket("image", shape) for shape in manifest.shape_buckets]
    return [*shapes, Bucket("text", (min(WARM_UP_TOKENS, manifest.max_text_tokens),))]


def serve_lanes(
    package: ModelPackage, lanes: list[Lane], settings: Settings, metrics: Metrics
) -> ServedModel:
    """Start the batcher over warmed lanes."""
    manifest = package.manifest
    max_cost = settings.max_batch_patches
    batcher = Batcher(
        lanes,
        rules=BatchRules(
            limits={
                "image": BatchLimits(max_items=settings.max_batch_images, max_cost=max_cost),
                "text": BatchLimits(max_items=settings.max_batch_texts, max_cost=max_cost),
            },
            max_wait_s=settings.max_wait_ms / 1000,
            priority_step_s=settings.priority_step_s,
            # Lanes of a CPU compute side by side, and a large batch is no cheaper than small ones.
            share_evenly=True,
        ),
        metrics=metrics,
        care=LaneCare(
            probe_interval_s=settings.watchdog_interval_s,
            hang_limit_s=settings.watchdog_hang_limit_s,
            dead_limit_s=settings.watchdog_dead_limit_s,
        ),
    )
    runtime = lanes[0].runtime
    info = ModelInfo(
        manifest=manifest,
        runtime=runtime.name,
        precision=runtime.precision,
        limits=request_limits(settings),
    )
    metrics.add_model(
        name=manifest.name,
        variant=manifest.variant,
        runtime=runtime.name,
        precision=runtime.precision,
    )
    watch_queue(batcher, manifest, metrics)
    batcher.start()
    return ServedModel(
        info,
        tokenizer=TextTokenizer.from_package(package),
        batcher=batcher,
        lanes=lanes,
        cache=TextCache(settings.text_cache_bytes, metrics),
        admission=Admission(settings.max_queue_patches, metrics, batcher),
    )


def _load_lane(package: ModelPackage, settings: Settings, buckets: list[Bucket]) -> Lane:
    lane = Lane(
        partial(
            load_runtime, package, runtime=settings.runtime, num_threads=settings.threads_per_lane
        ),
        embed_dim=package.manifest.embed_dim,
        probe_bucket=buckets[0],
    )
    for bucket in buckets:
        lane.try_out(bucket)
    return lane


def watch_queue(batcher: Batcher, manifest: Manifest, metrics: Metrics) -> None:
    """Report the queues; shapes that are not in the manifest are many, and share one label."""
    named = {Bucket("image", shape) for shape in manifest.shape_buckets}

    def depths() -> dict[str, int]:
        totals = {bucket.label: 0 for bucket in named}
        for bucket, depth in batcher.queue.depths().items():
            is_named = bucket.kind == "text" or bucket in named
            label = bucket.label if is_named else f"{bucket.kind} other"
            totals[label] = totals.get(label, 0) + depth
        return totals

    metrics.watch_queue(depths, batcher.queue.oldest_s)
