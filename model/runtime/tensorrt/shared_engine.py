"""Engines that are loaded: once in a process, whatever the number of lanes that run them.

An engine holds the weights on the GPU. Lanes have execution contexts of their own over it.
"""

import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from model.runtime.tensorrt.buffers import ElementType
from model.runtime.tensorrt.calls import GpuError
from model.runtime.tensorrt.libraries import Libraries
from model.runtime.tensorrt.profiles import Profile, ShapeRange


@dataclass(eq=False, slots=True)
class LoadedEngine:
    """An engine on the GPU, with what it says of its inputs and outputs.

    Attributes:
        engine: TensorRT's; contexts are made under `lock`.
        runtime: What loaded it, which must live as long.
        inputs: Types of the inputs.
        outputs: Types of the outputs.
        profiles: Shapes that it was built for.
        lock: For making contexts.
    """

    engine: Any
    runtime: Any
    inputs: dict[str, ElementType]
    outputs: dict[str, ElementType]
    profiles: list[Profile]
    lock: threading.Lock = field(default_factory=threading.Lock)


def deserialize(libraries: Libraries, plan: bytes) -> LoadedEngine | None:
    """Load an engine onto the GPU; None where TensorRT refuses it, and its log says why.

    Raises:
        GpuError: It has a tensor of a type that this program cannot feed.
    """
    runtime = libraries.trt.Runtime(libraries.log.logger)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        return None
    trt = libraries.trt
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs = [n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
    profiles: list[Profile] = [
        {
            name: ShapeRange(*map(tuple, engine.get_tensor_profile_shape(name, index)))
            for name in inputs
        }
        for index in range(engine.num_optimization_profiles)
    ]
    types = {name: _element_type(trt, engine.get_tensor_dtype(name)) for name in names}
    return LoadedEngine(
        engine,
        runtime,
        {name: types[name] for name in inputs},
        {name: types[name] for name in names if name not in inputs},
        profiles,
    )


def _element_type(trt: Any, kind: Any) -> ElementType:
    known = {
        trt.DataType.FLOAT: ElementType(np.dtype(np.float32)),
        trt.DataType.HALF: ElementType(np.dtype(np.float16)),
        trt.DataType.BF16: ElementType(np.dtype(np.uint16), is_bfloat16=True),
        trt.DataType.INT32: ElementType(np.dtype(np.int32)),
        trt.DataType.INT64: ElementType(np.dtype(np.int64)),
    }
    if kind not in known:
        raise GpuError(
            f"the engine has a tensor of the type {kind}, which this program cannot feed; export "
            "the model again"
        )
    return known[kind]


class EnginePool:
    """Loaded engines by what they are, with the number of their users."""

    def __init__(self) -> None:
        """Hold nothing yet."""
        self._lock = threading.Lock()
        self._held: dict[Hashable, tuple[LoadedEngine, int]] = {}

    def __len__(self) -> int:
        return len(self._held)

    def acquire(self, key: Hashable, load: Callable[[], LoadedEngine]) -> LoadedEngine:
        """The engine of a key, loaded where nobody has it yet; give it back with `release`."""
        # Held while loading: who comes second must wait, and not load it again.
        with self._lock:
            engine, users = self._held.get(key) or (load(), 0)
            self._held[key] = (engine, users + 1)
            return engine

    def release(self, key: Hashable) -> None:
        """Give an engine back; with its last user it leaves the GPU."""
        with self._lock:
            engine, users = self._held.pop(key)
            if users > 1:
                self._held[key] = (engine, users - 1)


POOL = EnginePool()
