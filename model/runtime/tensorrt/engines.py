"""Build an engine from an ONNX graph, find a built one, and load it once per process."""

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from model.graphs import Precision, graph_file
from model.package import ModelPackage, Progress
from model.runtime.base import SharedGraphCache
from model.runtime.loaded_graphs import graph_digest, loaded_graphs, with_tapped
from model.runtime.tensorrt.buffers import FLOAT32, ElementType
from model.runtime.tensorrt.cuda import DeviceFacts, GpuError, GpuLibraries
from model.runtime.tensorrt.engine_cache import BuiltEngine, EngineCache, EngineKey
from model.runtime.tensorrt.profiles import (
    EngineOptions,
    Profile,
    ShapeRange,
    TensorRtOptions,
    profiles_for,
)

LOGGER = logging.getLogger(__name__)
# int8 needs a graph with quantisation nodes; TensorRT's parser decides whether it accepts them.
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "fp16", "int8")
MAX_REPORTED_PROBLEMS = 5
# Each engine is loaded once per process, whatever the number of lanes.
ENGINES = SharedGraphCache()


@dataclass(eq=False)
class LoadedEngine:
    """An engine on the GPU, which holds the weights; lanes share it.

    Attributes:
        engine: TensorRT's engine.
        runtime: TensorRT's runtime, which must live as long as the engine.
        inputs: Element types of the inputs.
        outputs: Element types of the outputs.
        profiles: Shapes that the engine was built for.
        lock: Held while an execution context is made.
    """

    engine: Any
    runtime: Any
    inputs: dict[str, ElementType]
    outputs: dict[str, ElementType]
    profiles: list[Profile]
    lock: threading.Lock = field(default_factory=threading.Lock)


def deserialize(libraries: GpuLibraries, plan: bytes) -> LoadedEngine | None:
    """Load an engine onto the GPU; None if TensorRT refuses it and logs why.

    Raises:
        GpuError: The engine has a tensor of an unsupported type.
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
        trt.DataType.FLOAT: FLOAT32,
        trt.DataType.HALF: ElementType(np.dtype(np.float16)),
        trt.DataType.BF16: ElementType(np.dtype(np.uint16), is_bfloat16=True),
        trt.DataType.INT32: ElementType(np.dtype(np.int32)),
        trt.DataType.INT64: ElementType(np.dtype(np.int64)),
    }
    if kind not in known:
        raise GpuError(
            f"the engine has a tensor of the type {kind}, which is not supported; export "
            "the model again"
        )
    return known[kind]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSource:
    """What an engine is built from.

    Attributes:
        graph: The ONNX file; its weights may be in other files.
        profiles: Shapes to build for.
        options: Options of the builder.
    """

    graph: Path
    profiles: Sequence[Profile]
    options: EngineOptions


def build_engine(
    libraries: GpuLibraries,
    source: EngineSource,
    timings: bytes,
    *,
    progress: Progress | None = None,
) -> BuiltEngine:
    """Build an engine, in minutes.

    Args:
        libraries: TensorRT.
        source: Graph, shapes and options.
        timings: Timing cache of earlier builds on this GPU; may be empty.
        progress: Called from TensorRT's threads with the current step.

    Raises:
        GpuError: TensorRT refuses the graph or a profile, or cannot build.
    """
    # Strongly typed: each layer computes in the precision of the graph, which was compared with
    # torch. TensorRT 11 has no other networks.
    trt, log = libraries.trt, libraries.log
    log.take_errors()
    builder = trt.Builder(log.logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parse_graph(libraries, network, source.graph)
    config = configure(libraries, builder, source)
    if progress is not None:
        config.progress_monitor = _monitor(trt, progress)
    cache = _timing_cache(config, timings)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise GpuError(
            f"TensorRT could not build an engine from {source.graph.name}: {log.take_errors()}. "
            "If memory is short, build for smaller batches or with a smaller workspace"
        )
    return BuiltEngine(plan=bytes(plan), timings=bytes(cache.serialize()) if cache else b"")


def parse_graph(libraries: GpuLibraries, network: Any, graph: Path) -> None:
    """Read an ONNX file into a network.

    Raises:
        GpuError: The file is missing, or TensorRT refuses it.
    """
    parser = libraries.trt.OnnxParser(network, libraries.log.logger)
    if parser.parse_from_file(str(graph)) and parser.num_errors == 0:
        return
    problems = [
        f"{problem.node_operator()} {problem.node_name()}: {problem.desc()}"
        for problem in map(parser.get_error, range(min(parser.num_errors, MAX_REPORTED_PROBLEMS)))
    ]
    reason = "; ".join(problems) or libraries.log.take_errors()
    raise GpuError(
        f"TensorRT refuses the graph {graph.name}: {reason}. Export the model again, or "
        "choose the runtime 'onnx' with the provider 'cuda'"
    )


def configure(libraries: GpuLibraries, builder: Any, source: EngineSource) -> Any:
    """Make the builder's settings for a source.

    Raises:
        GpuError: TensorRT refuses a profile.
    """
    trt, options = libraries.trt, source.options
    config = builder.create_builder_config()
    if not options.tf32:
        # TF32, which is on by default, keeps 10 of the 23 bits of a float32.
        config.clear_flag(trt.BuilderFlag.TF32)
    # Without it, a shape may take the activation memory of its profile's largest shape.
    config.set_preview_feature(trt.PreviewFeature.RUNTIME_ACTIVATION_RESIZE_10_10, True)
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.is_hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    config.builder_optimization_level = options.optimization_level
    # Lanes run in parallel already; more streams in one lane only add waiting.
    config.max_aux_streams = 0
    for number, profile in enumerate(source.profiles):
        shapes = builder.create_optimization_profile()
        for name, span in profile.items():
            shapes.set_shape(name, span.smallest, span.best, span.largest)
        if config.add_optimization_profile(shapes) != number:
            raise GpuError(
                f"TensorRT refuses the shapes {dict(profile)} for {source.graph.name}: "
                f"{libraries.log.take_errors()}"
            )
    return config


def _timing_cache(config: Any, timings: bytes) -> Any:
    """Attach earlier timings; start without them if they are of another device."""
    for kept in (timings, b""):
        cache = config.create_timing_cache(kept)
        if cache is not None and config.set_timing_cache(cache, False):
            return cache
    return None


def _monitor(trt: Any, progress: Progress) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Reports top-level phases and tenths of them."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            """Begin a phase."""
            if parent_phase is None:
                self._steps[phase_name] = num_steps
                progress(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            """Report every tenth; returns True to continue."""
            num_steps = self._steps.get(phase_name, 0)
            tenth = max(1, num_steps // 10)
            if step and num_steps and step % tenth == 0:
                progress(f"{phase_name}: {100 * step // num_steps} %")
            return True

        def phase_finish(self, phase_name: str) -> None:
            """End a phase."""
            self._steps.pop(phase_name, None)

    return Monitor()


def keys_for(
    package: ModelPackage, precision: Precision, *, device: DeviceFacts, options: TensorRtOptions
) -> list[EngineKey]:
    """Make the keys of a package's engines: vision, text, and its dense heads.

    Raises:
        ValueError: Engines are not built in this precision.
        PackageError: The package has no vision graph of this precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(
            f"TensorRT engines are built in {', '.join(PRECISIONS)}, not in {precision}; "
            "choose one of these, or another runtime"
        )
    keys = []
    loaded = loaded_graphs(package.manifest, "tensorrt", precision)
    for graph in with_tapped(loaded, package.manifest, "tensorrt"):
        package.file(graph.file)
        if graph.precision != precision:
            LOGGER.info(
                "the %s graph runs in %s, not in %s", graph.part, graph.precision, precision
            )
        keys.append(
            EngineKey(
                device=device,
                part=graph.part,
                precision=graph.precision,
                graph_sha256=graph_digest(package.manifest, graph.file),
                profiles=profiles_for(graph.part, package.manifest, options.engine),
                options=options.engine,
            )
        )
    return keys


def supply_engine(
    libraries: GpuLibraries,
    package: ModelPackage,
    key: EngineKey,
    options: TensorRtOptions,
    *,
    progress: Progress | None = None,
) -> LoadedEngine:
    """Load an engine onto the GPU: the package's own, a cached one, or a new one.

    Raises:
        GpuError: The engine cannot be built.
        OSError: The cache cannot be written.
    """
    own = _package_engine(libraries, package, key) if options.use_package_engines else None
    if own is not None:
        return own
    source = EngineSource(
        graph=package.file(graph_file(key.part, key.precision)),
        profiles=key.profiles,
        options=key.options,
    )

    def load(plan: bytes) -> LoadedEngine | None:
        return deserialize(libraries, plan)

    def build(timings: bytes) -> BuiltEngine:
        return build_engine(libraries, source, timings, progress=progress)

    return EngineCache(options.cache_folder).load_or_build(key, load=load, build=build)


def package_engine_file(key: EngineKey) -> str:
    """Name of an engine file in a package, such as `tensorrt/9.0-11.4.0/vision_model.plan`."""
    folder = f"tensorrt/{key.device.compute_capability}-{key.device.tensorrt}"
    suffix = "" if key.precision == "fp32" else f"_{key.precision}"
    return f"{folder}/{key.part}_model{suffix}.plan"


def _package_engine(
    libraries: GpuLibraries, package: ModelPackage, key: EngineKey
) -> LoadedEngine | None:
    """Load the package's own engine, whose digest was verified when the package was opened."""
    file = package_engine_file(key)
    if file not in package.manifest.files:
        return None
    engine = deserialize(libraries, package.file(file).read_bytes())
    if engine is None:
        LOGGER.warning("TensorRT refuses the package's own engine %s; another is used", file)
    else:
        LOGGER.info("using the package's own engine %s", file)
    return engine
