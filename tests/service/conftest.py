"""A fake runtime in NumPy that tests can hold and break; images; a whole server over it."""

import asyncio
import io
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Literal, cast

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from model.graphs import DENSE_TASKS, PATCH_OUTPUTS, DenseTask, PatchOutput, Precision
from model.manifest import Manifest
from model.runtime.base import Device, Interrupted, VisionOutput
from model.text import TextTokenizer, TokenBatch
from service.admission import Admission
from service.call import Call
from service.data_plane import DataPlane
from service.lanes.batching import Batcher, HealthLimits
from service.lanes.lane import Lane
from service.lanes.work import BatchLimits, Bucket
from service.messages import ModelInfo, RequestLimits
from service.models.conversion import ModelSource
from service.models.image_cache import ImageCache
from service.models.loading import request_limits, served_tasks
from service.models.registry import ModelRegistry
from service.models.served_model import ServedModel
from service.models.texts import TextCache
from service.monitoring.metrics import Metrics
from service.patch_budget import PatchBudget
from service.server import Server
from service.settings import Settings
from service.waiting import Pool

DIM = 8
# Of requests with tensors.
LIMITS = RequestLimits(
    max_images=4,
    max_texts=8,
    max_classes=1,
    max_image_bytes=1000,
    max_image_pixels=1000,
    max_request_bytes=100_000,
    max_answer_bytes=1_000_000,
    max_work_memory_bytes=1_000_000,
)
WAIT_S = 20.0
Serving = Callable[..., AbstractAsyncContextManager[Server]]
MakePlane = Callable[..., DataPlane]
Encode = Callable[..., bytes]
Entered = Callable[[], Awaitable[bool]]
BUNDLED = ModelSource("bundled-student")


class Clock:
    """Monotonic seconds that only the test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def call(seconds: float = WAIT_S) -> Call:
    """A call with a deadline in so many seconds."""
    return Call(request_id="test", deadline=time.monotonic() + seconds)


def sample(metrics: Metrics, name: str, **labels: str) -> float:
    """The value of a metric of ours; 0 without such a series."""
    return metrics.registry.get_sample_value(f"tipserve_{name}", labels) or 0.0


async def until(condition: Callable[[], bool]) -> None:
    """Wait until the condition holds."""
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.001)


class FakeRuntime:
    """Embeddings and maps that depend only on the pixels and tokens.

    Every call waits until `gate` is set. The faults "raise" and "short" concern all batches except
    the trial batches of a lane; "broken" concerns those too.
    """

    name = "fake"
    precision: Precision = "fp32"
    device: Device = "cpu"
    tasks: tuple[DenseTask, ...] = DENSE_TASKS
    takes_bytes = False
    # Pause between two trial batches of its lane.
    retry_s = 0.02
    text_cache_bytes = 1_000_000
    trial_interval_s = 10.0

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.fault: Literal["", "raise", "short", "broken"] = ""
        self.num_images = 0
        self.patch_outputs: list[tuple[PatchOutput, ...]] = []
        self.num_texts = 0
        self.num_maps = 0
        self.num_released = 0
        self.is_closed = False
        self.num_interrupted = 0
        self._interrupted = threading.Event()
        self._mix = np.random.default_rng(0).standard_normal((3, DIM), dtype=np.float32)

    def encode_images(
        self,
        pixels_B3HW: NDArray[np.float32],
        tasks: Sequence[DenseTask] = (),
        patch_outputs: Collection[PatchOutput] = PATCH_OUTPUTS,
    ) -> VisionOutput:
        """Each patch: its mean colour through a fixed matrix."""
        is_trial = bool((pixels_B3HW == 1).all())
        self._enter(is_trial)
        batch, _, height, width = pixels_B3HW.shape
        self.num_images += batch
        rows, columns = height // 14, width // 14
        blocks = pixels_B3HW.reshape(batch, 3, rows, 14, columns, 14).mean(axis=(3, 5))
        with np.errstate(invalid="ignore"):  # a test may send infinities
            patches_BND = blocks.reshape(batch, 3, -1).transpose(0, 2, 1) @ self._mix + 0.1
        if self.fault == "short" and not is_trial:
            patches_BND = patches_BND[:-1]
        self.patch_outputs.append(tuple(patch_outputs))
        num_patches, num_values = (rows * columns * (n in patch_outputs) for n in PATCH_OUTPUTS)
        mean_BD = patches_BND.mean(axis=1)
        return VisionOutput(
            cls1_BD=mean_BD,
            cls2_BD=-mean_BD,
            patches_BND=patches_BND[:, :num_patches],
            values_BND=2 * patches_BND[:, :num_values] + 1,
            grid_hw=(rows, columns),
            maps={task: self.estimate(task, pixels_B3HW) for task in tasks},
        )

    def encode_texts(
        self, token_ids_BL: NDArray[np.int64], mask_BL: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Each text: the sum of a fixed vector for each token."""
        self._enter()
        self.num_texts += len(token_ids_BL)
        angles_BLD = token_ids_BL[..., None] * np.arange(1, DIM + 1) / 7
        summed_BD = (np.cos(angles_BLD) * mask_BL[..., None]).sum(axis=1)
        return cast("NDArray[np.float32]", summed_BD.astype(np.float32))

    def close(self) -> None:
        """Record the call."""
        self.is_closed = True

    def estimate(self, task: DenseTask, pixels_B3HW: NDArray[np.float32]) -> NDArray[np.float32]:
        """Each patch: 8 x 8 times its mean brightness as depth, else its mean colour."""
        is_trial = bool((pixels_B3HW == 1).all())
        self._enter(is_trial)
        self.num_maps += len(pixels_B3HW)
        batch, _, height, width = pixels_B3HW.shape
        blocks = pixels_B3HW.reshape(batch, 3, height // 14, 14, width // 14, 14).mean(axis=(3, 5))
        if self.fault == "short" and not is_trial:
            blocks = blocks[:-1]
        large = (blocks - 0.5).repeat(8, axis=2).repeat(8, axis=3)
        depth = 1 + 9 * blocks.mean(axis=1).repeat(8, axis=1).repeat(8, axis=2)
        return cast("NDArray[np.float32]", depth if task == "depth" else large)

    def release_idle_memory(self) -> None:
        """Count."""
        self.num_released += 1

    def interrupt(self) -> None:
        """End the call that waits for the gate."""
        self._interrupted.set()

    def _enter(self, is_trial: bool = False) -> None:
        self._interrupted.clear()
        self.entered.release()
        latest = time.monotonic() + WAIT_S
        while not self.gate.wait(0.005):
            if self._interrupted.is_set():
                self.num_interrupted += 1
                raise Interrupted("held no longer")
            assert time.monotonic() < latest
        if self.fault == "broken" or (self.fault == "raise" and not is_trial):
            raise RuntimeError("secret of the runtime")


class FakeTokenizer:
    """One token for each character."""

    max_tokens = 64

    def is_too_long(self, text: str) -> bool:
        """As `TextTokenizer.is_too_long`."""
        return len(text) > self.max_tokens

    def drop_start(self, text: str) -> str:
        """As `TextTokenizer.drop_start`."""
        return text[-self.max_tokens :]

    def encode(self, texts: Sequence[str]) -> TokenBatch:
        """As `TextTokenizer.encode`, for one text."""
        ids = [ord(letter) for letter in texts[0] if letter != "\u200b"][: self.max_tokens]
        if not ids:
            raise ValueError("text 0 is blank")
        row = np.array([ids], dtype=np.int64)
        return TokenBatch(token_ids_BL=row, mask_BL=np.ones_like(row))


@pytest.fixture
def manifest() -> Manifest:
    """The manifest of a model of width 8, native at 28 pixels."""
    return Manifest(
        name="fake",
        variant="fake/14",
        embed_dim=DIM,
        native_size=28,
        min_size=14,
        max_size=112,
        shape_buckets=[(28, 28), (28, 42)],
        temperature=0.01,
        outputs=["patches", "values", "cls1", "cls2", "text", "depth", "normals", "segmentation"],
        segmentation_labels=["red", "green", "blue"],
        licence="none",
    )


@pytest.fixture
def clock() -> Clock:
    """A clock at zero."""
    return Clock()


@pytest.fixture
def metrics() -> Metrics:
    """Fresh counters."""
    return Metrics()


@pytest.fixture
def runtime() -> FakeRuntime:
    """The runtime of the one lane that `load_fake` makes."""
    return FakeRuntime()


@pytest.fixture
def serve_fake(manifest: Manifest) -> Callable[..., ServedModel]:
    """Make a served model: one lane over a runtime, under the manifest's name or another."""

    def serve(
        settings: Settings, metrics: Metrics, runtime: FakeRuntime, name: str | None = None
    ) -> ServedModel:
        limits = BatchLimits(
            max_images=settings.max_batch_images or 4,
            max_patches=settings.max_batch_patches,
            max_tokens=settings.max_batch_patches,
        )
        lane = Lane(
            runtime,
            embed_dim=DIM,
            trial_bucket=Bucket("image", (14, 14)),
            num_labels=len(manifest.segmentation_labels),
        )
        health = HealthLimits(
            trial_interval_s=runtime.trial_interval_s,
            hang_limit_s=settings.watchdog_hang_limit_s,
            retry_s=runtime.retry_s,
        )
        batcher = Batcher([lane], limits=limits, metrics=metrics, health=health)
        batcher.start()
        info = ModelInfo(
            manifest=manifest.model_copy(update={"name": name or manifest.name}),
            runtime="fake",
            precision="fp32",
            limits=request_limits(settings),
            tasks=served_tasks(manifest, runtime),
        )
        return ServedModel(
            info,
            tokenizer=cast("TextTokenizer", FakeTokenizer()),
            batcher=batcher,
            lanes=[lane],
            cache=TextCache(runtime.text_cache_bytes, metrics),
            budget=PatchBudget(settings.max_queue_patches, metrics, batcher),
        )

    return serve


@pytest.fixture
def load_fake(
    serve_fake: Callable[..., ServedModel], runtime: FakeRuntime
) -> Callable[..., ServedModel]:
    """A loader for the server: every model over the one fake runtime."""

    def load(settings: Settings, metrics: Metrics, source: ModelSource = BUNDLED) -> ServedModel:
        return serve_fake(settings, metrics, runtime, source.name)

    return load


@pytest.fixture
def make_settings() -> Callable[..., Settings]:
    """Settings for a test: free ports on loopback, one thread in the pool."""

    def make(**values: object) -> Settings:
        ports = {"http_port": 0, "grpc_port": 0, "metrics_port": 0, "host": "127.0.0.1"}
        plain = {"pool_threads": 1, "lanes": 1, "image_cache_bytes": 0}
        return Settings.model_validate({**ports, **plain, **values})

    return make


@pytest.fixture
def serving(
    make_settings: Callable[..., Settings],
    load_fake: Callable[..., ServedModel],
    runtime: FakeRuntime,
) -> Callable[..., AbstractAsyncContextManager[Server]]:
    """A context in which a whole server runs over the fake runtime, with these settings."""

    @asynccontextmanager
    async def serve(**values: object) -> AsyncIterator[Server]:
        server = Server(make_settings(**values), load_fake)
        running = asyncio.ensure_future(server.run())
        ready = asyncio.ensure_future(server.ready.wait())
        await asyncio.wait({running, ready}, return_when=asyncio.FIRST_COMPLETED)
        try:
            yield server
        finally:
            ready.cancel()
            runtime.gate.set()
            server.request_stop()
            await running

    return serve


@pytest.fixture
def entered(runtime: FakeRuntime) -> Callable[[], Awaitable[bool]]:
    """Wait until the runtime has begun a batch."""
    return lambda: asyncio.to_thread(runtime.entered.acquire, timeout=WAIT_S)


@pytest.fixture
def pool() -> Pool:
    """Two threads for decoding."""
    return Pool(2)


@pytest.fixture
def encode_image() -> Callable[..., bytes]:
    """Encode an image: `encode_image("PNG", mode="RGB", size=(40, 30))`, colours by seed."""

    def encode(
        file_format: str = "PNG",
        *,
        mode: str = "RGB",
        size: tuple[int, int] = (40, 30),
        seed: int = 0,
        **save: object,
    ) -> bytes:
        noise = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
        stream = io.BytesIO()
        Image.fromarray(noise).convert(mode).save(stream, file_format, **save)
        return stream.getvalue()

    return encode


@pytest.fixture
def make_plane(
    load_fake: Any, make_settings: Any, metrics: Metrics, pool: Pool, runtime: FakeRuntime
) -> Iterator[Callable[..., DataPlane]]:
    """A data plane over the fake runtime, made when the test has prepared it."""
    made = []

    def make(**values: Any) -> DataPlane:
        settings = make_settings(**{"max_queue_patches": 256, "max_batch_patches": 64, **values})
        admission = Admission(
            metrics,
            max_body_bytes=settings.max_body_memory_bytes,
            max_work_bytes=settings.max_work_memory_bytes,
        )
        plane = DataPlane(
            admission,
            ModelRegistry(
                metrics, images=ImageCache(metrics, max_bytes=settings.image_cache_bytes)
            ),
            limits=request_limits(settings),
            max_image_patches=settings.max_batch_patches,
            pool=pool,
        )
        made.append(load_fake(settings, metrics))
        plane.models.put(made[-1])
        admission.open()
        return plane

    yield make
    runtime.gate.set()
    for served in made:
        served.close(10)
    pool.shutdown()
