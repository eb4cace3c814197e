"""A stand-in for the module `tensorrt` without a GPU: it checks the calls and builds nothing.

An "engine" is a note of the builder's arguments; `stand_in_engine` runs it.
"""

import enum
import functools
import json
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.model.runtime.tensorrt.stand_in_cuda import Misuse, StandInCuda
from tests.model.runtime.tensorrt.stand_in_engine import (
    Context,
    DataType,
    Dims,
    Engine,
    session_of,
)

Severity = enum.IntEnum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE", start=0)


class ILogger:
    """Base of loggers."""

    Severity = Severity


class IProgressMonitor:
    """Base of monitors."""


class StandInTensorRt:
    """Looks like the module. Attributes below are for the tests.

    Attributes:
        failing: Names of calls that fail, as TensorRT fails them: None or False, and a message.
        types: Types that tensors have other than the usual ones.
        called: Names of the calls, in order.
        num_built: Engines that were built.
        configs: Settings of the builds.
    """

    ILogger = ILogger
    IProgressMonitor = IProgressMonitor
    DataType = DataType
    TensorIOMode = enum.Enum("TensorIOMode", "NONE INPUT OUTPUT")
    NetworkDefinitionCreationFlag = enum.IntEnum(
        "NetworkDefinitionCreationFlag", {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1}
    )
    BuilderFlag = enum.Enum("BuilderFlag", "TF32 FP16")
    PreviewFeature = enum.Enum("PreviewFeature", "RUNTIME_ACTIVATION_RESIZE_10_10")
    MemoryPoolType = enum.Enum("MemoryPoolType", "WORKSPACE TACTIC_DRAM")
    HardwareCompatibilityLevel = enum.Enum("HardwareCompatibilityLevel", "NONE AMPERE_PLUS")
    ExecutionContextAllocationStrategy = enum.Enum(
        "ExecutionContextAllocationStrategy", "STATIC USER_MANAGED"
    )

    def __init__(self, cuda: StandInCuda) -> None:
        self.__version__ = "11.4.0"
        self.cuda = cuda
        self.failing: set[str] = set()
        self.types: dict[str, DataType] = {}
        self.called: list[str] = []
        self.num_built = 0
        self.configs: list[Config] = []
        self.contexts: weakref.WeakSet[Context] = weakref.WeakSet()
        self.engines: weakref.WeakSet[Engine] = weakref.WeakSet()
        self.logger: Any = None
        self.Builder = functools.partial(Builder, self)
        self.OnnxParser = functools.partial(OnnxParser, self)
        self.Runtime = functools.partial(Runtime, self)

    def fails(self, name: str) -> bool:
        self.called.append(name)
        if name in self.failing and self.logger is not None:
            message = f"stand-in: {name} failed"
            self.logger.log(Severity.ERROR, message)
        return name in self.failing


class Builder:
    """Makes networks and their engines."""

    def __init__(self, trt: StandInTensorRt, logger: Any) -> None:
        self.trt = trt
        trt.logger = logger

    def create_network(self, flags: int) -> SimpleNamespace:
        if not flags & 1 << int(self.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED):
            raise Misuse("a weakly typed network")
        return SimpleNamespace(graph=None)

    def create_builder_config(self) -> "Config":
        return Config(self.trt)

    def create_optimization_profile(self) -> "Profile":
        return Profile()

    def build_serialized_network(self, network: Any, config: "Config") -> bytes | None:
        if config.progress_monitor is not None:
            config.progress_monitor.phase_start("stand-in", None, 20)
            config.progress_monitor.step_complete("stand-in", 10)
            config.progress_monitor.phase_finish("stand-in")
        names = [found.name for found in session_of(network.graph).get_inputs()]
        for profile in config.profiles:
            if sorted(profile.shapes) != sorted(names):
                raise Misuse(f"a profile for {list(profile.shapes)} instead of {names}")
        if self.trt.fails("build_serialized_network"):
            return None
        self.trt.num_built += 1
        self.trt.configs.append(config)
        shapes = [profile.shapes for profile in config.profiles]
        return json.dumps({"graph": network.graph, "profiles": shapes}).encode()


class Config:
    """Settings of a build."""

    def __init__(self, trt: StandInTensorRt) -> None:
        self.trt = trt
        self.flags = {trt.BuilderFlag.TF32}
        self.features: set[Any] = set()
        self.profiles: list[Profile] = []
        self.workspace: int | None = None
        self.progress_monitor: Any = None
        self.timings: bytes | None = None
        self.hardware_compatibility_level = trt.HardwareCompatibilityLevel.NONE
        self.builder_optimization_level = 3
        self.max_aux_streams = -1

    def clear_flag(self, flag: Any) -> None:
        self.flags.discard(flag)

    def set_preview_feature(self, feature: Any, enable: bool) -> None:
        assert enable
        self.features.add(feature)

    def set_memory_pool_limit(self, pool: Any, num_bytes: int) -> None:
        assert pool == self.trt.MemoryPoolType.WORKSPACE
        self.workspace = num_bytes

    def add_optimization_profile(self, profile: "Profile") -> int:
        if self.trt.fails("add_optimization_profile"):
            return -1
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, kept: bytes) -> Any:
        if self.trt.fails("create_timing_cache"):
            return None
        return SimpleNamespace(kept=kept, serialize=lambda: kept + b"t")

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if cache.kept.startswith(b"foreign"):
            return False
        self.timings = cache.kept
        return True


class Profile:
    """Ranges of shapes."""

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[Dims, Dims, Dims]] = {}

    def set_shape(self, name: str, smallest: Dims, best: Dims, largest: Dims) -> None:
        self.shapes[name] = (smallest, best, largest)


class OnnxParser:
    """Reads a graph's name; ONNX Runtime reads the graph."""

    def __init__(self, trt: StandInTensorRt, network: Any, logger: Any) -> None:
        self.trt, self.network = trt, network
        trt.logger = logger
        self.num_errors = 0

    def parse_from_file(self, path: str) -> bool:
        if not Path(path).is_file():
            return False
        if self.trt.fails("parse_from_file"):
            self.num_errors = 1
            return False
        self.network.graph = path
        return True

    def get_error(self, _index: int) -> Any:
        return SimpleNamespace(
            node_operator=lambda: "Resize", node_name=lambda: "node_1", desc=lambda: "antialias"
        )


class Runtime:
    """Loads engines."""

    def __init__(self, trt: StandInTensorRt, logger: Any) -> None:
        self.trt = trt
        trt.logger = logger

    def deserialize_cuda_engine(self, plan: bytes) -> "Engine | None":
        try:
            note = json.loads(plan)
        except ValueError:
            note = None
        if note is None or self.trt.fails("deserialize_cuda_engine"):
            return None
        return Engine(self.trt, note)
