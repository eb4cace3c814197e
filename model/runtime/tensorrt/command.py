"""`python -m model build-engine`: build a package's engines before the service starts.

Run it in an init container or an image build on the same kind of GPU. The service then loads the
engines from the cache and starts in seconds.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from cyclopts import Parameter

from model.graphs import Precision, graph_file
from model.package import ModelPackage, Progress
from model.runtime.base import LaneShare
from model.runtime.choice import RuntimeChoice
from model.runtime.tensorrt.runtime import TensorRtRuntime

PRECISIONS: Final[tuple[Precision, ...]] = ("fp32", "bf16", "fp16")
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
        int | None, Parameter(help="As the service's setting, if that is set. Default: 64 images.")
    ] = None


def run(given: BuildOptions, package: ModelPackage, cache: Path, say: Progress) -> None:
    """Build the engines that are missing below a cache folder, and run each batch once.

    Raises:
        MissingRuntimeError: TensorRT or cuda-python is not installed.
        GpuError: There is no usable GPU, or an engine cannot be built.
        PackageError: The package has no graph of the precision.
    """
    files = package.manifest.files
    usual = [p for p in PRECISIONS if graph_file("vision", p) in files]
    share = LaneShare(cache=cache, max_batch_patches=given.max_batch_patches)
    for precision in given.precision or usual:
        began = time.monotonic()
        choice = RuntimeChoice(runtime="tensorrt", precision=precision, device="gpu", reason="")
        TensorRtRuntime(package, choice, share, progress=say).close()
        say(f"{precision}: ready after {time.monotonic() - began:.0f} s")
