"""Builds an engine from an ONNX graph with TensorRT's builder.

Networks are strongly typed: each layer computes in the precision that the graph has, and nothing
else, so that what was compared with torch is what runs. TensorRT 11 knows no other networks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.runtime.tensorrt.calls import GpuError
from model.runtime.tensorrt.engine_cache import BuiltEngine
from model.runtime.tensorrt.libraries import Libraries
from model.runtime.tensorrt.options import EngineOptions
from model.runtime.tensorrt.profiles import Profile

Progress = Callable[[str], None]
MAX_REPORTED_PROBLEMS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSource:
    """What an engine is built from.

    Attributes:
        graph: The ONNX file; its weights may lie beside it.
        profiles: Shapes to build for.
        options: How.
    """

    graph: Path
    profiles: Sequence[Profile]
    options: EngineOptions


def build_engine(
    libraries: Libraries, source: EngineSource, timings: bytes, *, progress: Progress | None = None
) -> BuiltEngine:
    """Build an engine, in minutes.

    Args:
        libraries: TensorRT.
        source: Graph, shapes and options.
        timings: Of earlier builds on this GPU; may be empty.
        progress: Called now and then, from TensorRT's threads, with what is being done.

    Raises:
        GpuError: TensorRT does not take the graph or a profile, or cannot build.
    """
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
            "Where memory is short, build for smaller batches or with a smaller workspace"
        )
    return BuiltEngine(plan=bytes(plan), timings=bytes(cache.serialize()) if cache else b"")


def parse_graph(libraries: Libraries, network: Any, graph: Path) -> None:
    """Read an ONNX file into a network.

    Raises:
        GpuError: It is missing, or has something that TensorRT does not take.
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
        f"TensorRT does not take the graph {graph.name}: {reason}. Export the model again, or "
        "choose the runtime 'onnx' with the provider 'cuda'"
    )


def configure(libraries: Libraries, builder: Any, source: EngineSource) -> Any:
    """The builder's settings for a source.

    Raises:
        GpuError: TensorRT does not take a profile.
    """
    trt, options = libraries.trt, source.options
    config = builder.create_builder_config()
    if not options.allow_tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.is_hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    config.builder_optimization_level = options.optimization_level
    # Lanes compute side by side already; streams inside one would be more to wait for.
    config.max_aux_streams = 0
    for number, profile in enumerate(source.profiles):
        shapes = builder.create_optimization_profile()
        for name, span in profile.items():
            shapes.set_shape(name, span.smallest, span.best, span.largest)
        if config.add_optimization_profile(shapes) != number:
            raise GpuError(
                f"TensorRT does not take the shapes {dict(profile)} for {source.graph.name}: "
                f"{libraries.log.take_errors()}"
            )
    return config


def _timing_cache(config: Any, timings: bytes) -> Any:
    """Attach earlier timings, or start afresh where they are another device's."""
    for kept in (timings, b""):
        cache = config.create_timing_cache(kept)
        if cache is not None and config.set_timing_cache(cache, False):
            return cache
    return None


def _monitor(trt: Any, progress: Progress) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Reports the phases that have no parent, and tenths of them."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            """Begin a phase of so many steps."""
            if parent_phase is None:
                self._steps[phase_name] = num_steps
                progress(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            """Report every tenth part; True goes on."""
            num_steps = self._steps.get(phase_name, 0)
            tenth = max(1, num_steps // 10)
            if step and num_steps and step % tenth == 0:
                progress(f"{phase_name}: {100 * step // num_steps} %")
            return True

        def phase_finish(self, phase_name: str) -> None:
            """End a phase."""
            self._steps.pop(phase_name, None)

    return Monitor()
