"""Finds the engine for a package's graph: the package's own, a kept one, or a new one."""

import logging

from model.graphs import Precision, graph_file
from model.package import ModelPackage
from model.runtime.loaded_graphs import loaded_graphs
from model.runtime.tensorrt.engine_build import EngineSource, Progress, build_engine
from model.runtime.tensorrt.engine_cache import BuiltEngine, EngineCache
from model.runtime.tensorrt.engine_key import EngineKey, graph_digest
from model.runtime.tensorrt.libraries import DeviceFacts
from model.runtime.tensorrt.libraries import Libraries
from model.runtime.tensorrt.options import TensorRtOptions
from model.runtime.tensorrt.profiles import profiles_for
from model.runtime.tensorrt.shared_engine import LoadedEngine, deserialize

LOGGER = logging.getLogger(__name__)
# int8 needs a graph that says itself where it quantises and is left to TensorRT's parser to judge.
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "fp16", "int8")


def keys_for(
    package: ModelPackage, precision: Precision, *, device: DeviceFacts, options: TensorRtOptions
) -> list[EngineKey]:
    """What the engines of a package are made from: images, texts, and the heads that it has.

    Raises:
        ValueError: A precision that engines are not built in.
        PackageError: The package has no vision graph of this precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(
            f"TensorRT engines are built in {', '.join(PRECISIONS)}, not in {precision}; "
            "choose one of these, or another runtime"
        )
    keys = []
    for graph in loaded_graphs(package.manifest, "tensorrt", precision):
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
    libraries: Libraries,
    package: ModelPackage,
    key: EngineKey,
    options: TensorRtOptions,
    *,
    progress: Progress | None = None,
) -> LoadedEngine:
    """Load an engine onto the GPU; built first where there is none.

    Raises:
        GpuError: It cannot be built.
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
    """Where a package would carry an engine, such as `tensorrt/9.0-11.4.0/vision_model.plan`."""
    folder = f"tensorrt/{key.device.compute_capability}-{key.device.tensorrt}"
    suffix = "" if key.precision == "fp32" else f"_{key.precision}"
    return f"{folder}/{key.part}_model{suffix}.plan"


def _package_engine(
    libraries: Libraries, package: ModelPackage, key: EngineKey
) -> LoadedEngine | None:
    """The package's own engine, whose digest was verified when the package was opened."""
    file = package_engine_file(key)
    if file not in package.manifest.files:
        return None
    engine = deserialize(libraries, package.file(file).read_bytes())
    if engine is None:
        LOGGER.warning("TensorRT refuses the package's own engine %s; another is used", file)
    else:
        LOGGER.info("using the package's own engine %s", file)
    return engine
