"""`python -m model build-engine`: build a package's engines before the service starts.

Run it in an init container or an image build on the same kind of GPU. The service then loads the
engines from the cache and starts in seconds.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from model.graphs import Precision, graph_file
from model.package import ModelPackage, Progress
from model.runtime.tensorrt.cuda import GpuLibraries, device_facts, load_libraries
from model.runtime.tensorrt.engine_cache import EngineCache, EngineKey
from model.runtime.tensorrt.engines import PRECISIONS, keys_for, supply_engine
from model.runtime.tensorrt.profiles import (
    CACHE_ROOM,
    MAX_OPTIMIZATION_LEVEL,
    EngineOptions,
    TensorRtOptions,
)

HELP = "Build a package's TensorRT engines into the cache, on a GPU like the one that will serve."
MIB = 1 << 20
USUAL = EngineOptions()


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """Options of the command, apart from the cache."""

    precision: Annotated[
        tuple[Precision, ...],
        Parameter(
            help="May be repeated. Default: all precisions of the package except int8.",
            show_default=False,
        ),
    ] = ()
    max_batch: Annotated[int, Parameter(help="Largest batch of images in one run.")] = (
        USUAL.max_batch
    )
    best_batch: Annotated[int, Parameter(help="Batch of images that kernels are tuned for.")] = (
        USUAL.best_batch
    )
    max_texts: Annotated[int, Parameter(help="Largest batch of texts in one run.")] = (
        USUAL.max_texts
    )
    best_texts: Annotated[int, Parameter(help="Batch of texts that kernels are tuned for.")] = (
        USUAL.best_texts
    )
    optimization_level: Annotated[
        int,
        Parameter(help=f"0 to {MAX_OPTIMIZATION_LEVEL}: how long to search for faster kernels."),
    ] = USUAL.optimization_level
    workspace_mib: Annotated[
        int | None, Parameter(help="GPU memory for one layer. Default: no limit.")
    ] = None
    tf32: Annotated[
        bool,
        Parameter(help="Engines for a service with the setting tf32.", show_default=False),
    ] = False
    device: Annotated[int, Parameter(help="Index of the GPU.")] = 0
    hardware_compatible: Annotated[
        bool,
        Parameter(
            help="Build slower engines that also run on other GPUs; set it for the service too.",
            show_default=False,
        ),
    ] = False


def run(
    options: BuildOptions,
    package: ModelPackage,
    cache: Path,
    say: Progress,
    *,
    load: Callable[[], GpuLibraries] = load_libraries,
) -> None:
    """Build the engines that are missing.

    Args:
        options: Precisions, sizes and the GPU.
        package: The verified package.
        cache: The cache folder; engines are in a folder below it.
        say: Called with each step.
        load: Loads the libraries.

    Raises:
        MissingRuntimeError: TensorRT or cuda-python is not installed.
        GpuError: There is no usable GPU, or an engine cannot be built.
        PackageError: The package has no graph of the precision.
        ValueError: An option is out of range.
        OSError: The cache cannot be written.
    """
    wanted = _options(options, cache)
    libraries = load()
    device = device_facts(libraries, wanted.device_index)
    say(f"{device.gpu}, compute capability {device.compute_capability}, TensorRT {device.tensorrt}")
    keys = {
        (key.part, key.precision): key
        for precision in _precisions(package, options.precision)
        for key in keys_for(package, precision, device=device, options=wanted)
    }
    for number, key in enumerate(keys.values(), start=1):
        name = f"[{number}/{len(keys)}] {key.part} {key.precision}"
        began = time.monotonic()
        supply_engine(libraries, package, key, wanted, progress=partial(_say_with, name, say))
        say(f"{name}: ready after {time.monotonic() - began:.0f} s, {_place(wanted, key)}")


def _options(given: BuildOptions, cache: Path) -> TensorRtOptions:
    workspace = given.workspace_mib
    return TensorRtOptions(
        engine=EngineOptions(
            max_batch=given.max_batch,
            best_batch=given.best_batch,
            max_texts=given.max_texts,
            best_texts=given.best_texts,
            workspace_bytes=None if workspace is None else workspace * MIB,
            optimization_level=given.optimization_level,
            tf32=given.tf32,
            is_hardware_compatible=given.hardware_compatible,
        ),
        cache_folder=cache / CACHE_ROOM,
        device_index=given.device,
    )


def _precisions(package: ModelPackage, asked: Sequence[Precision]) -> Sequence[Precision]:
    return asked or [
        precision
        for precision in PRECISIONS
        if precision != "int8" and graph_file("vision", precision) in package.manifest.files
    ]


def _place(options: TensorRtOptions, key: EngineKey) -> str:
    path = EngineCache(options.cache_folder).plan_file(key)
    return str(path) if path.is_file() else "the package's own"


def _say_with(name: str, say: Progress, text: str) -> None:
    say(f"{name}: {text}")
