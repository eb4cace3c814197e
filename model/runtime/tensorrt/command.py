"""`python -m model build-engine`: build a package's engines before the service starts.

Run it in an init container or an image build on the same kind of GPU. The service then loads the
engines from the cache and starts in seconds.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

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

HELP = "build a package's TensorRT engines into the cache, on a GPU like the one that will serve"
MIB = 1 << 20
USUAL = EngineOptions()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options, except the cache folder."""
    parser.add_argument(
        "--precision",
        action="append",
        choices=PRECISIONS,
        help="may be repeated; default: all precisions of the package except int8",
    )
    numbers = (
        ("--max-batch", USUAL.max_batch, "largest batch of images in one run"),
        ("--best-batch", USUAL.best_batch, "batch of images that kernels are tuned for"),
        ("--max-texts", USUAL.max_texts, "largest batch of texts in one run"),
        ("--best-texts", USUAL.best_texts, "batch of texts that kernels are tuned for"),
        (
            "--optimization-level",
            USUAL.optimization_level,
            f"0 to {MAX_OPTIMIZATION_LEVEL}: how long to search for faster kernels",
        ),
    )
    for flag, default, text in numbers:
        parser.add_argument(flag, type=int, default=default, help=f"{text} (default: %(default)s)")
    parser.add_argument(
        "--workspace-mib", type=int, help="GPU memory for one layer (default: no limit)"
    )
    parser.add_argument(
        "--device", type=int, default=0, help="index of the GPU (default: %(default)s)"
    )
    parser.add_argument(
        "--hardware-compatible",
        action="store_true",
        help="build slower engines that also run on other GPUs; set it for the service too",
    )


def run(
    options: argparse.Namespace,
    package: ModelPackage,
    cache: Path,
    say: Progress,
    *,
    load: Callable[[], GpuLibraries] = load_libraries,
) -> None:
    """Build the engines that are missing.

    Args:
        options: Parsed options of `add_arguments`.
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


def _options(arguments: argparse.Namespace, cache: Path) -> TensorRtOptions:
    workspace = arguments.workspace_mib
    return TensorRtOptions(
        engine=EngineOptions(
            max_batch=arguments.max_batch,
            best_batch=arguments.best_batch,
            max_texts=arguments.max_texts,
            best_texts=arguments.best_texts,
            workspace_bytes=None if workspace is None else workspace * MIB,
            optimization_level=arguments.optimization_level,
            is_hardware_compatible=arguments.hardware_compatible,
        ),
        cache_folder=cache / CACHE_ROOM,
        device_index=arguments.device,
    )


def _precisions(package: ModelPackage, asked: list[Precision] | None) -> list[Precision]:
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
