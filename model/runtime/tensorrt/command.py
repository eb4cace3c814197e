"""`python -m model build-engine`: build a package's engines before the service needs them.

For an init container or an image's build on the kind of GPU that will serve: the service then finds
the engines in the cache and starts in seconds.
"""

import argparse
import logging
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from model.graphs import Part, Precision, graph_file
from model.package import ModelPackage, open_package
from model.runtime.tensorrt.engine_cache import EngineCache
from model.runtime.tensorrt.engine_key import EngineKey
from model.runtime.tensorrt.engine_supply import PRECISIONS, dense_tasks, key_for, supply_engine
from model.runtime.tensorrt.libraries import Libraries, device_facts, load_libraries
from model.runtime.tensorrt.options import (
    DEFAULT_CACHE_FOLDER,
    MAX_OPTIMIZATION_LEVEL,
    EngineOptions,
    TensorRtOptions,
)

HELP = "build a package's TensorRT engines into the cache, on a GPU like the one that will serve"
MIB = 1 << 20
USUAL = EngineOptions()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("package", help="a model package, or `bundled`")
    parser.add_argument(
        "--precision",
        action="append",
        choices=PRECISIONS,
        help="give it once for each; default: all that the package has a vision graph for, "
        "int8 left out",
    )
    parser.add_argument(
        "--engine-cache",
        type=Path,
        default=DEFAULT_CACHE_FOLDER,
        help="folder of built engines (default: %(default)s)",
    )
    numbers = (
        ("--max-batch", USUAL.max_batch, "pictures that one run may hold"),
        ("--best-batch", USUAL.best_batch, "pictures that kernels are chosen for"),
        ("--max-texts", USUAL.max_texts, "texts that one run may hold"),
        ("--best-texts", USUAL.best_texts, "texts that kernels are chosen for"),
        (
            "--optimization-level",
            USUAL.optimization_level,
            f"0 to {MAX_OPTIMIZATION_LEVEL}: how long to look for faster kernels",
        ),
    )
    for flag, default, text in numbers:
        parser.add_argument(flag, type=int, default=default, help=f"{text} (default: %(default)s)")
    parser.add_argument("--workspace-mib", type=int, help="GPU memory for one layer; default: all")
    parser.add_argument("--device", type=int, default=0, help="GPU that is built on and for")
    parser.add_argument(
        "--hardware-compatible",
        action="store_true",
        help="slower engines that run on other GPUs, too; the service must be told the same",
    )


def run(options: argparse.Namespace, *, load: Callable[[], Libraries] = load_libraries) -> int:
    """Build what is not there yet.

    Args:
        options: Of `add_arguments`.
        load: Gives the libraries.

    Returns:
        The exit status: 0, or 1 with a sentence on standard error.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        _build_all(options, load())
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        # The user's to mend: the message says how, and a traceback would hide it.
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _build_all(arguments: argparse.Namespace, libraries: Libraries) -> None:
    options = _options(arguments)
    package = open_package(arguments.package)
    device = device_facts(libraries, options.device_index)
    print(
        f"{device.gpu}, compute capability {device.compute_capability}, TensorRT {device.tensorrt}"
    )
    keys = {
        (part, key.precision): key
        for part, precision in _wanted(package, arguments.precision)
        for key in [key_for(package, part, precision, device=device, options=options)]
    }
    for number, key in enumerate(keys.values(), start=1):
        name = f"[{number}/{len(keys)}] {key.part} {key.precision}"
        began = time.monotonic()
        progress = partial(_say, f"{name}: ")
        supply_engine(libraries, package, key, options, progress=progress)
        _say(f"{name}: ready after {time.monotonic() - began:.0f} s, ", _place(options, key))


def _options(arguments: argparse.Namespace) -> TensorRtOptions:
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
        cache_folder=arguments.engine_cache,
        device_index=arguments.device,
    )


def _wanted(
    package: ModelPackage, asked: list[Precision] | None
) -> Iterator[tuple[Part, Precision]]:
    precisions = asked or [
        precision
        for precision in PRECISIONS
        if precision != "int8" and graph_file("vision", precision) in package.manifest.files
    ]
    parts: tuple[Part, ...] = ("vision", "text", *dense_tasks(package))
    for precision in precisions:
        for part in parts:
            yield part, precision


def _place(options: TensorRtOptions, key: EngineKey) -> str:
    path = EngineCache(options.cache_folder).plan_file(key)
    return str(path) if path.is_file() else "the package's own"


def _say(name: str, text: str) -> None:
    print(f"{name}{text}", flush=True)
