"""Runs are prepared once: one context and one recorded graph for each batch of a profile.

A small stand-in keeps the GPU's memory on the host and doubles what it is given.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from model.runtime.base import Interrupted
from model.runtime.tensorrt.byte_pixels import BYTE_PIXELS as PIXELS
from model.runtime.tensorrt.byte_pixels import FLOAT_PIXELS
from model.runtime.tensorrt.cuda import Cuda, GpuError, GpuLibraries
from model.runtime.tensorrt.engines import LoadedEngine
from model.runtime.tensorrt.graph import EngineGraph, LaneStream, Memory
from model.runtime.tensorrt.profiles import ShapeRange

BUCKET = {PIXELS: ShapeRange((1, 3, 4, 4), (2, 3, 4, 4), (8, 3, 4, 4))}
OTHERS = {PIXELS: ShapeRange((1, 3, 2, 2), (1, 3, 4, 4), (1, 3, 8, 8))}


class HostCuda:
    """CUDA's runtime on the host; work is done when it is queued, or when a graph is launched."""

    def __init__(self) -> None:
        self.blocks: dict[int, Any] = {}
        self.recorded: list[Callable[[], object]] | None = None
        self.launched = 0
        self.cudaError_t = SimpleNamespace(cudaSuccess=0)
        self.cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
        self.cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
        self.cudaStreamNonBlocking = self.cudaEventBlockingSync = self.cudaEventDisableTiming = 1

    def __getattr__(self, name: str) -> Any:
        known = {
            "cudaMalloc": self.allocate,
            "cudaMallocHost": self.allocate,
            "cudaFree": self.free,
            "cudaFreeHost": self.free,
            "cudaMemcpyAsync": self.copy,
            "cudaStreamBeginCapture": self.begin,
            "cudaStreamEndCapture": self.end,
            "cudaGraphInstantiate": lambda graph, _: (0, graph),
            "cudaGraphLaunch": self.launch,
            "cudaGetErrorString": lambda _: (0, b"out of memory"),
        }
        return known.get(name, lambda *_: (0, 7) if "Create" in name else (0,))

    def allocate(self, num_bytes: int) -> tuple[int, int]:
        block = (ctypes.c_ubyte * num_bytes)()
        self.blocks[ctypes.addressof(block)] = block
        return 0, ctypes.addressof(block)

    def free(self, address: int) -> tuple[int]:
        return (0 if self.blocks.pop(address, None) is not None else 1,)

    def queue(self, work: Callable[[], object]) -> None:
        work() if self.recorded is None else self.recorded.append(work)

    def copy(self, target: int, source: int, num_bytes: int, *_: Any) -> tuple[int]:
        self.queue(lambda: ctypes.memmove(target, source, num_bytes))
        return (0,)

    def begin(self, *_: Any) -> tuple[int]:
        self.recorded = []
        return (0,)

    def end(self, _: Any) -> tuple[int, Any]:
        recorded, self.recorded = self.recorded, None
        return 0, recorded

    def launch(self, graph: Any, _: Any) -> tuple[int]:
        self.launched += 1
        for work in graph:
            work()
        return (0,)


@dataclass
class Context:
    """Doubles its pixels."""

    cuda: HostCuda
    shape: tuple[int, ...] = ()
    addresses: dict[str, int] = field(default_factory=dict)
    fails: bool = False

    def set_optimization_profile_async(self, *_: Any) -> bool:
        return True

    def set_input_shape(self, _: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return True

    def get_tensor_shape(self, _: str) -> tuple[int, ...]:
        return self.shape

    def update_device_memory_size_for_shapes(self) -> int:
        return 64

    def set_device_memory(self, *_: Any) -> None:
        pass

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, _: int) -> bool:
        self.cuda.queue(self.compute)
        return not self.fails

    def compute(self) -> None:
        count = int(np.prod(self.shape))
        given = (ctypes.c_uint8 * count).from_address(self.addresses[PIXELS])
        made = (ctypes.c_float * count).from_address(self.addresses["doubled"])
        made[:] = [2.0 * value for value in given]


class Gpu:
    """A lane with one engine, on the stand-in."""

    def __init__(self) -> None:
        self.cuda, self.contexts = HostCuda(), list[Context]()
        self.log = SimpleNamespace(take_errors=lambda: "no memory")
        trt = SimpleNamespace(ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED=1))
        libraries = GpuLibraries(trt, Cuda(self.cuda), cast("Any", self.log))
        inputs, outputs = {PIXELS: np.dtype(np.uint8)}, {"doubled": np.dtype(np.float32)}
        engine = SimpleNamespace(create_execution_context=self.new_context)
        self.lane = LaneStream(libraries)
        loaded = LoadedEngine(engine, None, inputs, outputs, [BUCKET, OTHERS])
        self.graph = EngineGraph(self.lane, loaded)
        sizes = self.graph.num_bytes, self.graph.num_activation_bytes
        self.memory = Memory(self.lane.cuda, *sizes)

    def new_context(self, _: Any) -> Context:
        self.contexts.append(Context(self.cuda))
        return self.contexts[-1]

    def run(self, pixels: Any) -> Any:
        return self.graph.run({FLOAT_PIXELS: pixels}, ["doubled"])["doubled"]


def pixels(batch: int, side: int = 4) -> Any:
    return np.random.default_rng(batch).integers(0, 256, (batch, 3, side, side), dtype=np.uint8)


def refuse(_: object) -> None:
    raise GpuError("no graphs here")


@pytest.mark.parametrize("records", [True, False])
def test_contexts_and_graphs_are_made_at_warm_up_and_never_in_traffic(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, records: bool
) -> None:
    gpu = Gpu()
    if not records:
        monkeypatch.setattr(gpu.lane, "record", refuse)
    gpu.graph.prepare(gpu.memory)
    assert ("CUDA graphs are off" in caplog.text) is not records
    assert len(gpu.contexts) == 5  # batches of 1, 2, 4 and 8, and other sizes
    held = len(gpu.cuda.blocks)
    for batch in (1, 2, 3, 7, 8, 20, 3):
        np.testing.assert_array_equal(gpu.run(pixels(batch)), 2.0 * pixels(batch))
    assert gpu.cuda.launched == (9 if records else 0)
    for side in (2, 8):  # in memory of their own, one by one
        np.testing.assert_array_equal(gpu.run(pixels(3, side)), 2.0 * pixels(3, side))
    as_float = (pixels(2) / np.float32(255)).astype(np.float32)
    np.testing.assert_array_equal(gpu.run(as_float), 2.0 * pixels(2))
    assert (len(gpu.contexts), len(gpu.cuda.blocks)) == (5, held)
    with pytest.raises(ValueError, match="not built for inputs of"):
        gpu.run(pixels(1, 16))
    gpu.graph.close()
    gpu.memory.close()
    assert not gpu.cuda.blocks


def test_an_interruption_skips_the_rest_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu()
    gpu.graph.prepare(gpu.memory)
    gpu.graph.interrupt()  # nothing runs
    launch = gpu.lane.launch

    def interrupted(recorded: Any) -> None:
        gpu.graph.interrupt()
        launch(recorded)

    with monkeypatch.context() as patch:
        patch.setattr(gpu.lane, "launch", interrupted)
        with pytest.raises(Interrupted):
            gpu.run(pixels(30))
    assert gpu.cuda.launched == 1
    assert len(gpu.run(pixels(30))) == 30
