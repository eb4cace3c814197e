"""Served shapes and dense heads, lanes that fit the memory, and limits of batches."""

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from numpy.typing import NDArray

from model.graphs import DENSE_TASKS, PATCH_OUTPUTS, DenseTask, PatchOutput
from model.manifest import Manifest
from model.package import ModelPackage, PackageError
from model.runtime.base import UnusableRuntimeError, VisionOutput
from model.runtime.choice import RuntimeChoice
from service import machine as service_machine
from service.lanes import sizing
from service.lanes.lane import Lane
from service.lanes.work import Bucket
from service.models import loading
from service.models.conversion import ModelSource
from service.models.loading import (
    LoadedLanes,
    bucket_limits,
    item_cost,
    load_lanes,
    load_model,
    served_buckets,
    served_tasks,
    with_maps,
    with_sizes,
)
from service.monitoring.metrics import Metrics
from tests.service.conftest import FakeRuntime

MB = 2**20
CHOICE = RuntimeChoice(runtime="onnx", precision="fp32", device="cpu", reason="the only one")


def test_further_sizes_are_served_after_the_manifest_s_and_once(manifest: Manifest) -> None:
    sizes = [(112, 112), (28, 42), (112, 56), (112, 112)]
    served = with_sizes(manifest, sizes)
    assert served.shape_buckets == [(28, 28), (28, 42), (112, 112), (112, 56)]
    for size in ((30, 28), (28, 126), (0, 28)):
        with pytest.raises(PackageError, match=r"multiples of 14 from 14 to 112; change sizes"):
            with_sizes(manifest, [size])


def test_every_shape_and_every_head_is_warmed_up(manifest: Manifest, runtime: FakeRuntime) -> None:
    further = with_sizes(manifest, [(112, 56)])
    buckets = with_maps(served_buckets(further, 4096), further, runtime)
    sizes = ["28x28", "28x42", "112x56"]
    images = [f"image {size}" for size in sizes]
    # Heads take even numbers of patches.
    maps = [f"{task} {size}" for task in DENSE_TASKS for size in ("28x28", "112x56")]
    assert [bucket.label for bucket in buckets] == [*images, "text 8", *maps]
    assert [item_cost(manifest, bucket) for bucket in buckets] == [4, 6, 32, 8, *3 * [4, 32]]
    with pytest.raises(PackageError, match="raise max_batch_patches above 20"):
        served_buckets(further, 20)


def test_a_head_is_served_if_package_and_runtime_have_it(
    manifest: Manifest, runtime: FakeRuntime
) -> None:
    assert served_tasks(manifest, runtime) == ("depth", "normals", "segmentation")
    unnamed = manifest.model_copy(update={"segmentation_labels": []})
    assert served_tasks(unnamed, runtime) == ("depth", "normals")
    runtime.tasks = ("segmentation", "normals")
    assert served_tasks(unnamed, runtime) == ("normals",)
    assert served_tasks(manifest.model_copy(update={"outputs": ["cls1"]}), runtime) == ()


class LargeRuntime(FakeRuntime):
    """Keeps 1 MiB for each patch of its largest call on a GPU; see `Machine.peak_bytes` for a CPU.

    A full GPU fails as CUDA does. Notes the maps that it computes.
    """

    def __init__(self, machine: "Machine") -> None:
        super().__init__()
        self.machine, self.device = machine, machine.choice.device
        self.kept_bytes, self.maps = 0, list[str]()
        self.tasks = machine.tasks

    def encode_images(
        self,
        pixels_B3HW: NDArray[np.float32],
        tasks: Sequence[DenseTask] = (),
        patch_outputs: Collection[PatchOutput] = PATCH_OUTPUTS,
    ) -> VisionOutput:
        num_patches = pixels_B3HW[:, 0].size // 14**2
        output = super().encode_images(pixels_B3HW, tasks, patch_outputs)
        self.kept_bytes = max(self.kept_bytes, num_patches * MB)
        if self.device == "gpu" and self.machine.free_on_gpu() < 0:
            raise RuntimeError("CUDA out of memory. Tried to allocate")
        return output

    def estimate(self, task: DenseTask, pixels_B3HW: NDArray[np.float32]) -> NDArray[np.float32]:
        height, width = pixels_B3HW.shape[2:]
        self.maps.append(f"{task} {height}x{width}")
        return super().estimate(task, pixels_B3HW)


class Machine:
    """Four CPUs, some free memory, and the runtimes that were loaded for a manifest."""

    def __init__(self, manifest: Manifest, make_settings: Any) -> None:
        self.manifest, self.make_settings = manifest, make_settings
        self.choice = CHOICE
        self.tasks: tuple[DenseTask, ...] = ()
        self.free_bytes: int | None = 100_000 * MB
        self.loaded: list[LargeRuntime] = []

    def free_on_gpu(self, in_use_bytes: int = 0) -> int:
        assert self.free_bytes is not None
        return in_use_bytes + self.free_bytes - sum(one.kept_bytes for one in self.loaded)

    def peak_bytes(self, run: Callable[[], object]) -> int:
        """As of a meter: the first lane takes 12 MiB for each patch on a CPU."""
        run()
        return 12 * self.loaded[0].kept_bytes

    def load_chosen(self, *_: object, **__: object) -> FakeRuntime:
        self.loaded.append(LargeRuntime(self))
        return self.loaded[-1]

    def load(self, num_loading: int = 1, **values: object) -> LoadedLanes:
        """Load the lanes with these settings."""
        self.loaded.clear()
        settings = self.make_settings(**{"lanes": None, **values})
        package = ModelPackage(path=Path(), manifest=self.manifest)
        return load_lanes(package, settings, ModelSource("any", num_loading=num_loading))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, manifest: Manifest, make_settings: Any) -> Machine:
    made = Machine(manifest, make_settings)
    monkeypatch.setattr(loading, "PeakMeter", lambda: made)
    monkeypatch.setattr(loading, "WARM_UP_LIMIT_S", 0.0)
    monkeypatch.setattr(loading, "free_memory", lambda: made.free_bytes)
    monkeypatch.setattr(loading, "load_chosen", made.load_chosen)
    monkeypatch.setattr(loading, "available_cpus", lambda: 4)
    monkeypatch.setattr(sizing, "weight_bytes", lambda *_: (MB, 0))
    monkeypatch.setattr(loading, "choose_runtime", lambda *_: made.choice)
    return made


def test_what_was_measured_is_logged_for_debugging_only(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        machine.load()
    (measured,) = [record for record in caplog.records if record.getMessage() == "measured"]
    assert measured.levelno == logging.DEBUG


def test_lanes_and_batches_fit_the_memory_that_the_first_lane_uses(machine: Machine) -> None:
    loaded = machine.load()
    assert len(loaded.lanes) == 4
    # Only the first lane ran the largest shape; what it left in the graphs is freed.
    assert [runtime.num_images for runtime in machine.loaded] == [2, 1, 1, 1]
    assert [runtime.num_released for runtime in machine.loaded] == [1, 1, 1, 1]
    assert loaded.largest_bytes == 72 * MB
    # An eighth of it is each lane's own; 28 x 42 pixels are 6 patches and take 72 MiB.
    assert 500 < machine.load(max_batch_images=64).limits.max_patches < 1100
    machine.free_bytes = 400 * MB
    assert len(machine.load().lanes) == 2, "the estimate was too low"
    # Two processes that load at the same time have half of the memory each.
    machine.free_bytes = 800 * MB
    assert len(machine.load().lanes) == 4
    assert len(machine.load(num_loading=2).lanes) == 2
    machine.free_bytes = 170 * MB
    with pytest.raises(PackageError, match=r"image 28x42 on each of 4 lanes, .* set lanes to [12]"):
        machine.load(lanes=4)


SHAPES = {"size_multiple": 28, "shape_buckets": [(28, 28), (84, 28), (56, 28)]}
NATIVE_MAPS = [f"{task} 28x28" for task in DENSE_TASKS]
ALL_MAPS = [*NATIVE_MAPS, *(f"{task} {side}x28" for side in (56, 84) for task in DENSE_TASKS)]


@pytest.mark.parametrize(("limit_s", "maps"), [(0.0, NATIVE_MAPS), (60.0, ALL_MAPS)])
def test_slow_heads_run_on_the_first_lane_in_their_native_shape(
    machine: Machine,
    manifest: Manifest,
    monkeypatch: pytest.MonkeyPatch,
    limit_s: float,
    maps: list[str],
) -> None:
    monkeypatch.setattr(loading, "WARM_UP_LIMIT_S", limit_s)
    machine.tasks, machine.manifest = DENSE_TASKS, manifest.model_copy(update=SHAPES)
    loaded = machine.load(lanes=2, max_batch_images=1)
    assert [runtime.maps for runtime in machine.loaded] == [maps, []]
    seconds = {b.height: b.run_s for b in bucket_limits(loaded)}
    if not limit_s:  # the shape between the two that ran is estimated
        assert seconds[56] == pytest.approx(2 * seconds[28], abs=1e-5)


@pytest.mark.parametrize("given", [{}, {"max_batch_images": 2}])
def test_the_time_of_a_native_image_is_that_of_its_fastest_run(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, given: dict[str, int]
) -> None:
    seconds = iter([0.9])  # the first run of a shape may wait for a compiler

    def run(lane: Lane, bucket: Bucket, num_items: int = 1) -> float:
        is_native = (bucket, num_items) == (Bucket("image", (28, 28)), 1)
        return next(seconds, 0.05) if is_native else 0.4

    monkeypatch.setattr(loading, "WARM_UP_LIMIT_S", 5.0)
    monkeypatch.setattr(Lane, "run_synthetic", run)
    assert machine.load(lanes=1, **given).seconds[Bucket("image", (28, 28))] == 0.05


@pytest.mark.parametrize(
    ("free_mb", "given", "most_images"),
    [
        (1_000_000, {}, 64),
        (64_000, {}, 62),  # half of it for two lanes: 16,000 patches each, 256 an image
        (600, {}, 1),
        (1_000_000, {"max_batch_patches": 1024}, 4),
        (None, {}, 16),  # CUDA does not say: 4,096 patches
    ],
)
def test_batches_on_a_gpu_fit_its_free_memory(
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    free_mb: int | None,
    given: dict[str, int],
    most_images: int,
) -> None:
    machine.choice = replace(CHOICE, device="gpu")
    machine.free_bytes = (free_mb or 1_000_000) * MB
    for module in (loading, service_machine):
        known = machine.free_on_gpu if free_mb else lambda **_: None
        monkeypatch.setattr(module, "free_gpu_memory", known)
    monkeypatch.setattr(loading, "find_batch_size", lambda _, most: most)
    shapes = {"shape_buckets": [(224, 224)], "native_size": 224, "max_size": 224}
    machine.manifest = machine.manifest.model_copy(update=shapes)
    loaded = machine.load(**given)
    assert loaded.limits.max_images == most_images
    fits = [loaded.limits.fits("image", n, n * 256) for n in (most_images, most_images + 1)]
    assert fits == [True, False]
    for lane in loaded.lanes:
        lane.run_synthetic(Bucket("image", (224, 224)), most_images)
    if free_mb == 600:
        machine.free_bytes = 400 * MB
        with pytest.raises(PackageError, match="set lanes to 1 or fewer"):
            machine.load(lanes=2)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (RuntimeError("no operator"), "cannot load or compute the graphs of fake"),
        (MemoryError(), "the memory is full"),
        (RuntimeError("CUDA out of memory. Tried"), "the memory is full"),
        (RuntimeError("Failed to allocate memory for"), "use fewer lanes"),
    ],
)
def test_a_graph_that_the_runtime_refuses_ends_the_load_with_a_reason(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, error: Exception, sentence: str
) -> None:
    package = ModelPackage(path=Path(), manifest=machine.manifest)
    monkeypatch.setattr(loading, "open_source", lambda _: package)
    monkeypatch.setattr(loading, "load_chosen", Mock(side_effect=error))
    with pytest.raises((PackageError, UnusableRuntimeError), match=sentence):
        load_model(machine.make_settings(), Metrics(), ModelSource("any"))


def test_the_runtime_is_chosen_by_the_settings_and_workers_share_no_gpu(
    manifest: Manifest, make_settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def choose(_: object, request: Any, __: object) -> RuntimeChoice:
        asked.append(request)
        return RuntimeChoice(runtime="onnx", precision="fp32", device="gpu", reason="")

    monkeypatch.setattr(loading, "choose_runtime", choose)
    settings = make_settings(runtime="onnx", precision="fp16", device="gpu")
    package: Any = SimpleNamespace(manifest=manifest)
    assert loading.choose(package, settings).device == "gpu"
    (request,) = asked
    assert (request.runtime, request.precision, request.device) == ("onnx", "fp16", "gpu")
    with pytest.raises(UnusableRuntimeError, match="2 workers would each hold a CUDA context"):
        loading.choose(package, make_settings(workers=2, lanes=2, pool_threads=2))
