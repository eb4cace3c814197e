"""Build an engine from an ONNX graph, keep it in a cache, and load it once per process.

Engines are loaded without a lock, by any number of processes at once. One process builds at a time,
since parallel builds would disturb each other's timings.
"""

import hashlib
import json
import logging
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from model.files import atomic_write, locked
from model.graphs import Part, Precision, graph_file
from model.package import ModelPackage, Progress
from model.runtime.base import LaneShare, SharedGraphCache
from model.runtime.loaded_graphs import LoadedGraph, graph_digest
from model.runtime.tensorrt.byte_pixels import take_bytes
from model.runtime.tensorrt.cuda import GpuError, GpuLibraries
from model.runtime.tensorrt.profiles import Profile, ShapeRange, profiles_for

LOGGER = logging.getLogger(__name__)
# Folder of the engines below the program's cache, and that cache unless another is named.
CACHE_ROOM: Final = "tensorrt"
DEFAULT_CACHE: Final = Path("~/.cache/tipserve")
MAX_REPORTED_PROBLEMS: Final = 5
LOCK: Final = "build.lock"
DIGEST_BYTES: Final = 32
# Raised when the code builds a different engine from the same key.
RECIPE: Final = 4
_engines = SharedGraphCache()


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineKey:
    """Everything that an engine depends on: GPU and libraries, a graph, and input shapes."""

    device: str
    part: Part
    precision: Precision
    graph_sha256: str
    profiles: Sequence[Profile]

    def cached_in(self, cache: Path | None) -> Path:
        """The file of the engine in a cache; None is the user's."""
        text = json.dumps({"recipe": RECIPE, **asdict(self)}, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()
        folder = (cache or DEFAULT_CACHE).expanduser() / CACHE_ROOM / self.device
        return folder / f"{self.part}_{self.precision}-{digest[:16]}.plan"


@dataclass(eq=False)
class LoadedEngine:
    """An engine on the GPU, which holds the weights, and the types of its inputs and outputs.

    The runtime must live as long as the engine; the lock is held while a context is made.
    """

    engine: Any
    runtime: Any
    inputs: dict[str, np.dtype[Any]]
    outputs: dict[str, np.dtype[Any]]
    profiles: list[Profile]
    lock: threading.Lock = field(default_factory=threading.Lock)


def key_of(
    package: ModelPackage, graph: LoadedGraph, share: LaneShare, *, device: str
) -> EngineKey:
    """The key of a graph's engine on a device; see `device_name` and `EngineKey`."""
    return EngineKey(
        device=device,
        part=graph.part,
        precision=graph.precision,
        graph_sha256=graph_digest(package.manifest, graph.file),
        profiles=profiles_for(graph.part, package.manifest, share.max_batch_patches),
    )


def supply_engine(
    libraries: GpuLibraries,
    package: ModelPackage,
    key: EngineKey,
    cache: Path | None,
    *,
    progress: Progress,
) -> LoadedEngine:
    """Return an engine on the GPU: another lane's, one of the cache, or a new one.

    Args:
        libraries: TensorRT.
        package: Has the graph.
        key: Everything that the engine depends on.
        cache: Cache of the program; None is the user's.
        progress: Called with the steps of a build, also from TensorRT's threads.

    Raises:
        GpuError: The engine cannot be built or loaded.
        OSError: The cache cannot be written.
    """
    path = key.cached_in(cache)

    def say(step: str) -> None:
        progress(f"building the {key.part} engine in {key.precision}: {step}")

    def build() -> LoadedEngine:
        say(f"{path}, which may take minutes")
        graph = package.file(graph_file(key.part, key.precision))
        plan = build_engine(libraries, graph, key.profiles, progress=say)
        engine = deserialize(libraries, plan)
        if engine is None:
            raise GpuError(
                f"TensorRT cannot load the engine that it built for the {key.part} graph: "
                f"{libraries.log.take_errors()}. Another version of TensorRT or of the driver may "
                "help"
            )
        atomic_write(path, hashlib.sha256(plan).digest() + plan)
        return engine

    def load_or_build() -> LoadedEngine:
        engine = _load(libraries, path)
        if engine is not None:
            return engine
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with locked(path.parent / LOCK, on_wait=_log_wait):
            # Another process may have built it meanwhile.
            return _load(libraries, path) or build()

    engine: LoadedEngine = _engines.take(path, load_or_build)
    return engine


def _load(libraries: GpuLibraries, path: Path) -> LoadedEngine | None:
    """Load a cached engine; None, and a line in the log, if it is damaged or refused."""
    if not path.is_file():
        return None
    content = path.read_bytes()
    digest, plan = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
    engine = deserialize(libraries, plan) if hashlib.sha256(plan).digest() == digest else None
    if engine is None:
        LOGGER.warning("the TensorRT engine %s is damaged or refused, and built again", path)
    else:
        LOGGER.info("using the TensorRT engine %s", path)
    return engine


def _log_wait(holder: str) -> None:
    LOGGER.info("waiting for %s, which builds TensorRT engines", holder)


def deserialize(libraries: GpuLibraries, plan: bytes) -> LoadedEngine | None:
    """Load an engine onto the GPU; None if TensorRT refuses it and logs why."""
    trt = libraries.trt
    runtime = trt.Runtime(libraries.log.logger)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        return None
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs = [n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
    profiles: list[Profile] = [
        {
            name: ShapeRange(*map(tuple, engine.get_tensor_profile_shape(name, index)))
            for name in inputs
        }
        for index in range(engine.num_optimization_profiles)
    ]
    types = {name: np.dtype(trt.nptype(engine.get_tensor_dtype(name))) for name in names}
    return LoadedEngine(
        engine,
        runtime,
        {name: types[name] for name in inputs},
        {name: types[name] for name in names if name not in inputs},
        profiles,
    )


def build_engine(
    libraries: GpuLibraries,
    graph: Path,
    profiles: Sequence[Profile],
    *,
    progress: Progress = lambda _: None,
) -> bytes:
    """Build an engine, in minutes, from an ONNX file for the shapes of these profiles.

    Raises:
        GpuError: TensorRT refuses the graph or a profile, or cannot build.
    """
    trt, log = libraries.trt, libraries.log
    log.take_errors()
    builder = trt.Builder(log.logger)
    # Strongly typed: each layer computes in the precision of the graph, which was compared with
    # torch. TensorRT 11 has no other networks.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log.logger)
    if not parser.parse(take_bytes(graph.read_bytes()), str(graph)) or parser.num_errors:
        raise GpuError(
            f"TensorRT refuses the graph {graph.name}: {_problems(parser) or log.take_errors()}. "
            "Export the model again, or choose the runtime 'onnx'"
        )
    config = builder.create_builder_config()
    # TF32, which is on by default, keeps 10 of the 23 bits of a float32.
    config.clear_flag(trt.BuilderFlag.TF32)
    # Without it, a shape may take the activation memory of its profile's largest shape.
    config.set_preview_feature(trt.PreviewFeature.RUNTIME_ACTIVATION_RESIZE_10_10, True)
    # Lanes run in parallel already; more streams in one lane only add waiting.
    config.max_aux_streams = 0
    config.progress_monitor = _monitor(trt, progress)
    for number, profile in enumerate(profiles):
        shapes = builder.create_optimization_profile()
        for name, span in profile.items():
            shapes.set_shape(name, span.smallest, span.best, span.largest)
        if config.add_optimization_profile(shapes) != number:
            raise GpuError(
                f"TensorRT refuses the shapes {dict(profile)} for {graph.name}: {log.take_errors()}"
            )
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise GpuError(
            f"TensorRT could not build an engine from {graph.name}: {log.take_errors()}. "
            "If memory is short, build for smaller batches (max_batch_patches)"
        )
    return bytes(plan)


def _problems(parser: Any) -> str:
    found = map(parser.get_error, range(min(parser.num_errors, MAX_REPORTED_PROBLEMS)))
    return "; ".join(f"{p.node_operator()} {p.node_name()}: {p.desc()}" for p in found)


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
            if step and num_steps and step % max(1, num_steps // 10) == 0:
                progress(f"{phase_name}: {100 * step // num_steps} %")
            return True

        def phase_finish(self, phase_name: str) -> None:
            """End a phase."""
            self._steps.pop(phase_name, None)

    return Monitor()
