"""A machine that seems to have a GPU: stand-ins for TensorRT and CUDA, and lanes over them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from model.graphs import Precision
from model.package import ModelPackage
from model.runtime.choice import RuntimeChoice
from model.runtime.tensorrt.cuda import Cuda, GpuLibraries, LibraryLog
from model.runtime.tensorrt.profiles import CACHE_ROOM, EngineOptions, TensorRtOptions
from model.runtime.tensorrt.runtime import TensorRtRuntime
from tests.model.runtime.tensorrt.stand_in_cuda import StandInCuda
from tests.model.runtime.tensorrt.stand_in_tensorrt import StandInTensorRt

FEW = EngineOptions(max_batch=4, best_batch=2, max_texts=6, best_texts=3)


@dataclass
class StandInGpu:
    """Both stand-ins, and the lanes that a test made over them.

    Attributes:
        package: What is loaded.
        options: How.
    """

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
        """As the program takes them."""
        return GpuLibraries(self.trt, Cuda(self.cuda), self.log)

    def lane(self, precision: Precision = "fp32") -> TensorRtRuntime:
        """Load a lane, which is closed when the test ends."""
        choice = RuntimeChoice(
            runtime="tensorrt", precision=precision, device="gpu", reason="a test wants it"
        )
        self.lanes.append(
            TensorRtRuntime(self.package, choice, options=self.options, load=lambda: self.libraries)
        )
        return self.lanes[-1]

    def close(self) -> None:
        """Close all lanes."""
        while self.lanes:
            self.lanes.pop().close()


MakeGpu = Callable[..., StandInGpu]


@pytest.fixture
def make_gpu(tiny_package: ModelPackage, tmp_path: Path) -> Iterator[MakeGpu]:
    """Makes stand-ins, with options other than the usual ones."""
    made: list[StandInGpu] = []

    def make(package: ModelPackage = tiny_package, **options: object) -> StandInGpu:
        usual: dict[str, object] = {"engine": FEW, "cache_folder": tmp_path / "cache" / CACHE_ROOM}
        made.append(StandInGpu(package, TensorRtOptions(**{**usual, **options})))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for gpu in made:
        gpu.close()


@pytest.fixture
def gpu(make_gpu: MakeGpu) -> StandInGpu:
    """A stand-in with the usual options."""
    return make_gpu()
