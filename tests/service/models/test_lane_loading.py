"""How many lanes there are follows what one of them takes in memory."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from model.package import Manifest, ModelPackage, PackageError, open_package
from model.runtime.base import VisionOutput
from model.runtime.choice import RuntimeChoice
from service.models import loading as lane_loading
from service.models.conversion import ModelSource
from service.models.loading import LoadedLanes, lane_plan, load_lanes, num_pool_threads

MB = 2**20
CHOICE = RuntimeChoice(runtime="onnx", precision="fp32", device="cpu", reason="the only one")


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine of four processors, and how often a runtime was loaded and closed on it."""

    loaded: list[Any]
    set_free: Callable[[int], None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, runtime: Any) -> Machine:
    """Runtimes that hold `IMAGE_BYTES` for each pixel of an image while they compute it."""
    loaded: list[Any] = []

    def load(*_: object, **__: object) -> Any:
        made = Hungry()
        loaded.append(made)
        return made

    class Hungry(type(runtime)):  # type: ignore[misc]
        tasks = ()

        def encode_images(self, pixels_B3HW: NDArray[np.float32]) -> VisionOutput:
            held = np.ones(pixels_B3HW[0, 0].size * 64 * 1024, np.uint8)
            output: VisionOutput = super().encode_images(pixels_B3HW)
            assert held[-1] == 1
            return output

    def set_free(num_bytes: int) -> None:
        monkeypatch.setattr(lane_loading, "free_memory", lambda: num_bytes)

    monkeypatch.setattr(lane_loading, "load_chosen", load)
    monkeypatch.setattr(lane_loading, "available_cpus", lambda: 4)
    monkeypatch.setattr(lane_loading, "weight_bytes", lambda *_: (MB, 0))
    monkeypatch.setattr(lane_loading, "choose_runtime", lambda *_: CHOICE)
    return Machine(loaded, set_free)


@pytest.fixture
def load(manifest: Manifest, make_settings: Any) -> Callable[..., LoadedLanes]:
    """Load the lanes of the fake model with these settings."""
    package = ModelPackage(path=open_package("bundled").path, manifest=manifest)

    def load_with(**values: object) -> LoadedLanes:
        settings = make_settings(warm_up_limit_s=0.0, **values)
        return load_lanes(package, settings, ModelSource("bundled"))

    return load_with


def test_with_memory_enough_there_is_a_lane_for_each_processor(
    machine: Machine, load: Callable[..., LoadedLanes]
) -> None:
    machine.set_free(100_000 * MB)
    loaded = load(lanes=None)
    assert len(loaded.lanes) == len(machine.loaded) == 4
    if loaded.memory.peak_bytes:
        assert 60 * MB < loaded.memory.largest_bytes < 200 * MB
        # An eighth of it is each lane's own; 28 x 42 pixels are 6 patches and take 73.5 MB.
        assert 500 < loaded.max_patches["image"] < 1100


def test_large_images_leave_room_for_fewer_lanes_of_more_threads(
    machine: Machine, load: Callable[..., LoadedLanes]
) -> None:
    machine.set_free(400 * MB)
    loaded = load(lanes=None)
    if not loaded.memory.peak_bytes:
        pytest.skip("this system lets no process reset its high-water mark")
    assert len(loaded.lanes) == 2
    # The first one, which was measured, had too few threads; it was closed for another.
    assert [runtime.is_closed for runtime in machine.loaded] == [True, False, False]


@pytest.mark.parametrize(("lanes", "planned"), [(None, 2), (5, 5)])
def test_a_gpu_has_two_lanes_however_many_processors(
    machine: Machine, make_settings: Any, lanes: int | None, planned: int
) -> None:
    settings = make_settings(lanes=lanes)
    assert lane_plan(settings, MB, (0, MB), device="gpu").num_lanes == planned


@pytest.mark.parametrize(
    ("free_bytes", "pool_threads", "planned"),
    [(100_000 * MB, None, 4), (1300 * MB, None, 2), (MB, None, 1), (MB, 7, 7)],
)
def test_as_many_threads_decode_as_have_the_memory_for_the_largest_images(
    machine: Machine, make_settings: Any, free_bytes: int, pool_threads: int | None, planned: int
) -> None:
    machine.set_free(free_bytes)
    settings = make_settings(pool_threads=pool_threads, max_image_pixels=40_000_000)
    assert num_pool_threads(settings) == planned


def test_lanes_that_were_asked_for_and_do_not_fit_are_an_error(
    machine: Machine, load: Callable[..., LoadedLanes]
) -> None:
    machine.set_free(170 * MB)
    if load(lanes=1).memory.largest_bytes == 0:
        pytest.skip("this system lets no process reset its high-water mark")
    with pytest.raises(PackageError, match=r"image 28x42 on each of 4 lanes, .* set lanes to [12]"):
        load(lanes=4)


def test_every_head_has_run_every_shape_on_every_lane(
    manifest: Manifest, make_settings: Any, monkeypatch: pytest.MonkeyPatch, runtime: Any
) -> None:
    monkeypatch.setattr(lane_loading, "load_chosen", lambda *_, **__: type(runtime)())
    monkeypatch.setattr(lane_loading, "choose_runtime", lambda *_: CHOICE)
    shapes = {"size_multiple": 28, "shape_buckets": [(28, 28), (56, 28)]}
    package = ModelPackage(path=Path(), manifest=manifest.model_copy(update=shapes))
    settings = make_settings(lanes=2, warm_up_limit_s=0.0)
    loaded = load_lanes(package, settings, ModelSource("bundled"))
    assert [lane.runtime.num_maps for lane in loaded.lanes] == [4, 4]  # type: ignore[attr-defined]
    maps = {f"{kind} {size}" for kind in ("depth", "normals") for size in ("28x28", "56x28")}
    assert maps < {bucket.label for bucket in loaded.warm.curves}
    if loaded.memory.peak_bytes:
        assert maps < {bucket.label for bucket in loaded.memory.peak_bytes}
