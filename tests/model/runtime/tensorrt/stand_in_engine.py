"""Engines and execution contexts of the stand-in for TensorRT.

A kernel runs the graph with ONNX Runtime on the bytes in the stand-in for CUDA's memory, when a
caller waits for the stream. What TensorRT leaves undefined raises `Misuse`.
"""

import enum
import functools
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tests.model.runtime.tensorrt.stand_in_cuda import Misuse

if TYPE_CHECKING:
    from tests.model.runtime.tensorrt.stand_in_tensorrt import StandInTensorRt

Dims = tuple[int, ...]


DataType = enum.Enum("DataType", "FLOAT HALF INT32 BOOL INT64 BF16")
NUMPY_TYPES = {
    DataType.FLOAT: np.float32,
    DataType.HALF: np.float16,
    DataType.INT32: np.int32,
    DataType.INT64: np.int64,
    DataType.BF16: np.uint16,
}


class Engine:
    """An engine, from its note."""

    def __init__(self, trt: "StandInTensorRt", note: dict[str, Any]) -> None:
        self.trt = trt
        self.graph: str = note["graph"]
        self.profiles: list[dict[str, list[Dims]]] = note["profiles"]
        session = session_of(self.graph)
        self.inputs = [found.name for found in session.get_inputs()]
        self.outputs = [found.name for found in session.get_outputs()]
        self.num_io_tensors = len(self.inputs) + len(self.outputs)
        self.num_optimization_profiles = len(self.profiles)
        trt.engines.add(self)

    def get_tensor_name(self, index: int) -> str:
        names: list[str] = [*self.inputs, *self.outputs]
        return names[index]

    def get_tensor_mode(self, name: str) -> Any:
        modes = self.trt.TensorIOMode
        return modes["INPUT"] if name in self.inputs else modes["OUTPUT"]

    def get_tensor_dtype(self, name: str) -> DataType:
        usual = DataType.INT64 if name in ("input_ids", "attention_mask") else DataType.FLOAT
        return self.trt.types.get(name, usual)

    def get_tensor_profile_shape(self, name: str, index: int) -> list[Dims]:
        return self.profiles[index][name]

    def create_execution_context(self, strategy: Any) -> "Context | None":
        assert strategy.name == "USER_MANAGED"
        return None if self.trt.fails("create_execution_context") else Context(self)


class Context:
    """Runs an engine if everything is set, and counts its changes."""

    def __init__(self, engine: Engine) -> None:
        self.trt, self.engine = engine.trt, engine
        self.profile: int | None = None
        self.shapes: dict[str, Dims] = {}
        self.addresses: dict[str, int] = {}
        self.memory: tuple[int, int] = (0, 0)
        self.num_changes = 0
        self.trt.contexts.add(self)

    def set_optimization_profile_async(self, profile: int, _stream: int) -> bool:
        assert not self.shapes
        self.profile = profile
        return not self.trt.fails("set_optimization_profile_async")

    def set_input_shape(self, name: str, shape: Dims) -> bool:
        if self.profile is None:
            raise Misuse("shapes before a profile")
        smallest, _, largest = self.engine.profiles[self.profile][name]
        for low, side, high in zip(smallest, shape, largest, strict=True):
            if not low <= side <= high:
                raise Misuse(f"{name} of {shape} is outside {smallest} to {largest}")
        self.shapes[name] = shape
        self.num_changes += 1
        return not self.trt.fails("set_input_shape")

    def get_tensor_shape(self, name: str) -> Dims:
        return self._compute(self._zeros())[name].shape

    def update_device_memory_size_for_shapes(self) -> int:
        return sum(int(np.prod(shape)) for shape in self.shapes.values())

    def set_device_memory(self, address: int, size: int) -> None:
        self.memory = (address, size)
        self.num_changes += 1

    def set_tensor_address(self, name: str, address: int) -> bool:
        if address % 256:
            raise Misuse(f"{name} is not aligned")
        self.addresses[name] = address
        self.num_changes += 1
        return not self.trt.fails("set_tensor_address")

    def execute_async_v3(self, stream: int) -> bool:
        missing = {*self.engine.inputs, *self.engine.outputs} - self.addresses.keys()
        if missing:
            raise Misuse(f"no address for {missing}")
        if self.memory[1] < self.update_device_memory_size_for_shapes():
            raise Misuse("too little memory for activations")
        if self.trt.fails("execute_async_v3"):
            self.trt.cuda.streams[stream].is_spoilt = (
                self.trt.cuda.streams[stream].recording is not None
            )
            return False
        changes_then = self.num_changes

        def kernels() -> None:
            if self.num_changes != changes_then:
                raise Misuse("the context was changed between recording and launching")
            self._run()

        self.trt.cuda.put(stream, kernels)
        return True

    def _run(self) -> None:
        self.trt.cuda.device_bytes(*self.memory)[:] = b"\xff" * self.memory[1]
        inputs = {name: self._load(name, shape) for name, shape in self.shapes.items()}
        for name, array in self._compute(inputs).items():
            self._store(name, array)

    def _zeros(self) -> dict[str, NDArray[Any]]:
        kinds = {"pixel_values": np.float32}
        return {n: np.ones(s, kinds.get(n, np.int64)) for n, s in self.shapes.items()}

    def _compute(self, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        given = {
            name: array.astype(np.float32 if name == "pixel_values" else np.int64)
            for name, array in inputs.items()
        }
        results = session_of(self.engine.graph).run(self.engine.outputs, given)
        return dict(zip(self.engine.outputs, results, strict=True))

    def _load(self, name: str, shape: Dims) -> NDArray[Any]:
        kind = self.engine.get_tensor_dtype(name)
        dtype = np.dtype(NUMPY_TYPES[kind])
        size = int(np.prod(shape)) * dtype.itemsize
        raw = np.frombuffer(bytes(self.trt.cuda.device_bytes(self.addresses[name], size)), dtype)
        if kind is DataType.BF16:
            raw = (raw.astype(np.uint32) << 16).view(np.float32)
        return raw.reshape(shape)

    def _store(self, name: str, array: NDArray[Any]) -> None:
        kind = self.engine.get_tensor_dtype(name)
        if kind is DataType.BF16:
            # Cut off, where the program rounds: the tests allow for both.
            array = (array.view(np.uint32) >> 16).astype(np.uint16)
        content = array.astype(NUMPY_TYPES[kind]).tobytes()
        self.trt.cuda.device_bytes(self.addresses[name], len(content))[:] = content


@functools.cache
def session_of(graph: str) -> Any:
    import onnxruntime  # noqa: PLC0415 - as in the runtimes

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
