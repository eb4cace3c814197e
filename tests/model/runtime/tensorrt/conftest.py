"""Stand-ins for TensorRT and CUDA, lanes over them, and inputs with a reference on the CPU."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from model.graphs import Precision
from model.package import ModelPackage
from model.runtime.base import Runtime, VisionOutput
from model.runtime.choice import RuntimeChoice
from model.runtime.load import load_runtime
from model.runtime.tensorrt.cuda import Cuda, GpuLibraries, LibraryLog
from model.runtime.tensorrt.profiles import CACHE_ROOM, EngineOptions, TensorRtOptions
from model.runtime.tensorrt.runtime import TensorRtRuntime
from tests.model.runtime.tensorrt.stand_in_cuda import StandInCuda
from tests.model.runtime.tensorrt.stand_in_tensorrt import StandInTensorRt

FEW = EngineOptions(max_batch=4, best_batch=2, max_texts=6, best_texts=3)


def tensorrt_choice(precision: Precision = "fp32") -> RuntimeChoice:
    return RuntimeChoice(runtime="tensorrt", precision=precision, device="gpu", reason="")


@dataclass
class StandInGpu:
    """Both stand-ins, and the lanes that a test loaded over them."""

    package: ModelPackage
    options: TensorRtOptions
    cuda: StandInCuda = field(default_factory=StandInCuda)
    trt: StandInTensorRt = field(init=False)
    lanes: list[TensorRtRuntime] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.trt = StandInTensorRt(self.cuda)
        self.log = LibraryLog(self.trt)

    @property
    def libraries(self) -> GpuLibraries:
        """The argument of the program's functions."""
        return GpuLibraries(self.trt, Cuda(self.cuda), self.log)

    def lane(self, precision: Precision = "fp32", **given: Any) -> TensorRtRuntime:
        """Load a lane, which is closed when the test ends."""
        given = given or {"options": self.options}
        choice = tensorrt_choice(precision)
        lane = TensorRtRuntime(self.package, choice, load=lambda: self.libraries, **given)
        self.lanes.append(lane)
        return lane

    def close(self) -> None:
        """Close all lanes."""
        while self.lanes:
            self.lanes.pop().close()


MakeGpu = Callable[..., StandInGpu]


@pytest.fixture
def make_gpu(tiny_package: ModelPackage, tmp_path: Path) -> Iterator[MakeGpu]:
    """Makes stand-ins; options replace those of small engines in a temporary cache."""
    made: list[StandInGpu] = []

    def make(package: ModelPackage = tiny_package, **options: Any) -> StandInGpu:
        usual = {"engine": FEW, "cache_folder": tmp_path / "cache" / CACHE_ROOM}
        made.append(StandInGpu(package, TensorRtOptions(**{**usual, **options})))
        return made[-1]

    yield make
    for gpu in made:
        gpu.close()


@pytest.fixture
def gpu(make_gpu: MakeGpu) -> StandInGpu:
    """A stand-in with the usual options."""
    return make_gpu()


@pytest.fixture(scope="session")
def reference(tiny_package: ModelPackage) -> Runtime:
    """The same package on the CPU."""
    return load_runtime(tiny_package, runtime="onnx")


def images(batch: int, height: int = 56, width: int = 56) -> NDArray[np.float32]:
    generator = np.random.default_rng(batch * height + width)
    return generator.random((batch, 3, height, width), dtype=np.float32)


def texts(batch: int, length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    generator = np.random.default_rng(batch * length)
    mask_BL = (np.arange(length) < generator.integers(1, length + 1, (batch, 1))).astype(np.int64)
    return generator.integers(1, 200, (batch, length)) * mask_BL, mask_BL


def assert_near(output: VisionOutput, expected: VisionOutput, atol: float = 1e-6) -> None:
    assert output.grid_hw == expected.grid_hw
    for name in ("cls1_BD", "cls2_BD", "patches_BND", "values_BND"):
        found, wanted = getattr(output, name), getattr(expected, name)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, wanted, rtol=0, atol=atol, err_msg=name)
