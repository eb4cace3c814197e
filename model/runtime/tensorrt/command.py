"""`python -m model build-engine`: build a package's engines before the service starts.

Run it in an init container or an image build on the same kind of GPU. The service then loads the
engines from the cache and starts in seconds.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from model.graphs import Precision, graph_file
from model.package import ModelPackage, Progress
from model.runtime.base import LaneShare
from model.runtime.choice import RuntimeChoice
from model.runtime.tensorrt.cuda import GpuLibraries, device_name, load_libraries
from model.runtime.tensorrt.engines import PRECISIONS, keys_for, supply_engine

HELP = "Build a package's TensorRT engines into the cache, on a GPU like the one that will serve."


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
    max_batch_patches: Annotated[
        int | None,
        Parameter(help="As the service's setting, if that is set. Default: 64 images."),
    ] = None
    tf32: Annotated[
        bool,
        Parameter(help="Engines for a service with the setting tf32.", show_default=False),
    ] = False


def run(
    given: BuildOptions,
    package: ModelPackage,
    cache: Path,
    say: Progress,
    *,
    load: Callable[[], GpuLibraries] = load_libraries,
) -> None:
    """Build the engines that are missing.

    Args:
        given: Precisions and sizes.
        package: The verified package.
        cache: The cache folder; engines are in a folder below it.
        say: Called with each step.
        load: Loads the libraries.

    Raises:
        MissingRuntimeError: TensorRT or cuda-python is not installed.
        GpuError: There is no usable GPU, or an engine cannot be built.
        PackageError: The package has no graph of the precision.
        ValueError: Engines are not built in the precision.
        OSError: The cache cannot be written.
    """
    libraries = load()
    device = device_name(libraries)
    say(device)
    files = package.manifest.files
    usual = [p for p in PRECISIONS if p != "int8" and graph_file("vision", p) in files]
    share = LaneShare(cache=cache, max_batch_patches=given.max_batch_patches)
    keys = {}
    for precision in given.precision or usual:
        choice = RuntimeChoice(
            runtime="tensorrt", precision=precision, device="gpu", tf32=given.tf32, reason=""
        )
        found = keys_for(package, choice, share, device)
        keys.update({(key.part, key.precision): key for key in found})
    for number, key in enumerate(keys.values(), start=1):
        name = f"[{number}/{len(keys)}] {key.part} {key.precision}"

        def progress(text: str, name: str = name) -> None:
            say(f"{name}: {text}")

        began, path = time.monotonic(), key.cached_in(cache)
        supply_engine(libraries, package, key, path, progress=progress)
        progress(f"ready after {time.monotonic() - began:.0f} s, {path}")
