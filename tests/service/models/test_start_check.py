"""A start takes the fastest runtime whose results equal the reference outputs of the package."""

import logging
import shutil
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from model.graphs import (
    DENSE_TASKS,
    PATCH_OUTPUTS,
    TEXT_FILE,
    DenseTask,
    PatchOutput,
    Precision,
    graph_file,
)
from model.manifest import RECORDED_FILE, FileEntry
from model.package import ModelPackage, PackageError, open_package
from model.runtime import choice as runtime_choice
from model.runtime.base import Runtime, UnusableRuntimeError, VisionOutput
from model.runtime.choice import Place, RuntimeChoice
from model.runtime.load import load_runtime
from model.runtime.machine import Hardware, InstalledLibraries
from model.runtime.tensorrt.cuda import GpuError
from service.models import loading
from service.models.conversion import ModelSource
from service.models.loading import LoadedLanes, load_lanes

H100 = Hardware(cpu_features=frozenset({"bf16", "fast_bf16"}), has_gpu=True)
LIBRARIES = InstalledLibraries(
    onnx=frozenset({"cpu", "gpu"}), openvino=True, tensorrt=True, torch=frozenset({"cpu"})
)
TENSORRT: Place = ("tensorrt", "gpu")
CUDA: Place = ("onnx", "gpu")
OPENVINO: Place = ("openvino", "cpu")


class Rounding:
    """Computes as ONNX Runtime on the CPU does, adds noise, and says that it is another runtime."""

    tasks: tuple[DenseTask, ...] = ()
    takes_bytes = False

    def __init__(self, exact: Runtime, choice: RuntimeChoice, noise: float) -> None:
        self._exact, self._noise = exact, noise
        self.name, self.precision, self.device = choice.runtime, choice.precision, choice.device
        self.is_closed = False

    def encode_images(
        self,
        pixels_B3HW: NDArray[np.float32],
        tasks: Sequence[DenseTask] = (),
        patch_outputs: Collection[PatchOutput] = PATCH_OUTPUTS,
    ) -> VisionOutput:
        output = self._exact.encode_images(pixels_B3HW, tasks, patch_outputs)
        noise = np.random.default_rng(0).standard_normal(output.cls1_BD.shape, np.float32)
        return replace(output, cls1_BD=output.cls1_BD + np.float32(self._noise) * noise)

    def close(self) -> None:
        self.is_closed = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._exact, name)


@dataclass
class StandIn:
    """A machine of stand-ins.

    Attributes:
        exact: What they compute.
        noise: Added to cls1, by place and precision; 0 where none is given.
        loaded: All runtimes that were loaded.
        broken: What TensorRT fails with.
    """

    exact: Runtime
    noise: dict[tuple[Place, Precision], float] = field(default_factory=dict)
    loaded: list[Rounding] = field(default_factory=list)
    broken: Exception | None = None

    def load(self, _: ModelPackage, choice: RuntimeChoice, *__: object, **___: object) -> Rounding:
        if self.broken is not None and choice.runtime == "tensorrt":
            raise self.broken
        noise = self.noise.get((choice.place, choice.precision), 0.0)
        self.loaded.append(Rounding(self.exact, choice, noise))
        return self.loaded[-1]


@pytest.fixture
def computed(tiny_package: ModelPackage) -> ModelPackage:
    """What the stand-ins compute."""
    return tiny_package


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, computed: ModelPackage) -> Any:
    with ExitStack() as cleanup:
        exact = load_runtime(computed, runtime="onnx", precision="fp32")
        cleanup.callback(exact.close)
        found = StandIn(exact)
        monkeypatch.setattr(loading, "load_chosen", found.load)
        monkeypatch.setattr(runtime_choice, "this_hardware", lambda: H100)
        monkeypatch.setattr(runtime_choice, "installed_libraries", lambda: LIBRARIES)
        yield found


@pytest.fixture
def package(tiny_package: ModelPackage) -> ModelPackage:
    """With graphs in fp16 and bf16, which the stand-ins do not read; measured on no CPU."""
    further: tuple[Precision, ...] = ("fp16", "bf16")
    entry = FileEntry(sha256="0" * 64, size_bytes=1)
    files = {graph_file(part, name): entry for part in ("vision", "text") for name in further}
    manifest = tiny_package.manifest
    changed = {"files": {**manifest.files, **files}, "parity": []}
    return replace(tiny_package, manifest=manifest.model_copy(update=changed))


@pytest.fixture
def start(
    package: ModelPackage, make_settings: Any, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., LoadedLanes]:
    monkeypatch.setattr(loading, "WARM_UP_LIMIT_S", 0.0)

    def load(of: ModelPackage = package, **values: object) -> LoadedLanes:
        return load_lanes(of, make_settings(**values), ModelSource("bundled-student"))

    return load


def taken(lanes: LoadedLanes) -> tuple[Place, Precision]:
    return lanes.choice.place, lanes.choice.precision


def without_outputs(package: ModelPackage) -> ModelPackage:
    files = {n: e for n, e in package.manifest.files.items() if n != RECORDED_FILE}
    return replace(package, manifest=package.manifest.model_copy(update={"files": files}))


def test_fp16_is_taken_on_a_gpu_if_it_passes(
    machine: StandIn, start: Callable[..., LoadedLanes]
) -> None:
    machine.noise[TENSORRT, "fp16"] = 1e-4
    lanes = start()
    assert taken(lanes) == (TENSORRT, "fp16")
    assert len(machine.loaded) == 1, "what passes is loaded once"
    assert "the fastest that is proven here; proven for this package" in lanes.choice.reason
    assert [entry.file for entry in lanes.parity] == [
        graph_file("vision", "fp16"),
        graph_file("text", "fp16"),
    ]


def test_wrong_fp16_is_told_with_its_number_and_bf16_is_taken(
    machine: StandIn, start: Callable[..., LoadedLanes], caplog: pytest.LogCaptureFixture
) -> None:
    machine.noise[TENSORRT, "fp16"] = 1.0
    with caplog.at_level(logging.WARNING):
        lanes = start()
    assert taken(lanes) == (TENSORRT, "bf16")
    assert [(r.precision, r.is_closed) for r in machine.loaded] == [("fp16", True), ("bf16", False)]
    (told,) = [r.getMessage() for r in caplog.records if "start check" in r.getMessage()]
    assert "onnx/vision_model_fp16.onnx on tensorrt in fp16 differs" in told
    number = lanes.choice.reason.partition("min_cosine_cls is ")[2].partition(",")[0]
    assert f"min_cosine_cls is {number}, min_cosine 0.999" in told
    assert -1 < float(number) < 0.999
    assert "Not tensorrt on a GPU (fp16): vision failed its proof in fp16" in lanes.choice.reason


def test_tensorrt_that_does_not_build_leads_to_onnx_runtime_on_cuda(
    machine: StandIn, start: Callable[..., LoadedLanes], caplog: pytest.LogCaptureFixture
) -> None:
    machine.broken = GpuError("TensorRT refuses the graph vision_model_fp16.onnx: If.")
    lanes = start()
    assert taken(lanes) == (CUDA, "fp16")
    assert "TensorRT is not used: TensorRT refuses the graph vision_model_fp16" in caplog.text
    assert "Not tensorrt on a GPU (fp16, bf16, fp32): TensorRT refuses" in lanes.choice.reason
    with pytest.raises(GpuError):
        start(runtime="tensorrt")
    machine.broken = TypeError("factory function returned nullptr")
    assert taken(start()) == (CUDA, "fp16")


def test_a_broken_gpu_ends_with_the_cpu(
    machine: StandIn, start: Callable[..., LoadedLanes]
) -> None:
    for place in (TENSORRT, CUDA):
        for precision in ("fp16", "bf16", "fp32"):
            machine.noise[place, precision] = 1.0
    lanes = start()
    # Its bf16 was measured on no CPU, so it is compared here.
    assert taken(lanes) == (OPENVINO, "bf16")
    machine.noise[OPENVINO, "bf16"] = 1.0
    machine.loaded.clear()
    assert taken(start()) == (OPENVINO, "fp32")
    assert all(runtime.is_closed for runtime in machine.loaded[:-1])
    assert [runtime.name for runtime in machine.loaded] == [*["tensorrt"] * 3, *["onnx"] * 3] + [
        "openvino"
    ] * 2
    with pytest.raises(UnusableRuntimeError, match=r"min_cosine_cls is 0\.\d+"):
        start(device="gpu")


class TestOfABundledModel:
    """As the repository has them."""

    @pytest.fixture(params=["bundled", "bundled-student"])
    def computed(self, request: pytest.FixtureRequest) -> ModelPackage:
        return open_package(request.param, verify=False)

    def test_it_takes_fp16_on_a_gpu_if_its_images_pass(
        self, machine: StandIn, computed: ModelPackage, start: Callable[..., LoadedLanes]
    ) -> None:
        lanes = start(computed)
        assert taken(lanes) == (TENSORRT, "fp16")
        assert len(machine.loaded) == 1
        used = [(entry.file, entry.precision) for entry in lanes.parity]
        assert used[:2] == [(graph_file("vision", "fp16"), "fp16"), (TEXT_FILE, "fp32")]
        assert {file for file, _ in used[2:]} == {
            graph_file(task) for task in DENSE_TASKS if task in computed.manifest.outputs
        }


def test_a_package_of_an_earlier_version_starts_in_fp32_with_a_warning(
    machine: StandIn,
    package: ModelPackage,
    start: Callable[..., LoadedLanes],
    caplog: pytest.LogCaptureFixture,
) -> None:
    lanes = start(without_outputs(package))
    assert taken(lanes) == (TENSORRT, "fp32")
    assert "package has no reference outputs" in caplog.text
    assert "(fp16, bf16): it is not checked on this GPU: the package has no reference" in (
        lanes.choice.reason
    )


def test_damaged_outputs_stop_the_start(
    machine: StandIn, package: ModelPackage, start: Callable[..., LoadedLanes], tmp_path: Path
) -> None:
    folder = tmp_path / "package"
    shutil.copytree(package.path, folder)
    (folder / RECORDED_FILE).write_bytes(b"damaged")
    with pytest.raises(PackageError, match=r"reference outputs .* are damaged"):
        start(replace(package, path=folder))
    assert machine.loaded == []
