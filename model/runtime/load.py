"""Chooses a runtime by name: one dictionary, read here and nowhere else."""

from collections.abc import Callable

from model.package import ModelPackage
from model.runtime.base import Runtime
from model.runtime.onnx_runtime import OnnxRuntime
from model.runtime.openvino_runtime import OpenVinoRuntime

RUNTIMES: dict[str, Callable[[ModelPackage, int], Runtime]] = {
    "onnx": OnnxRuntime,
    "openvino": OpenVinoRuntime,
}
AUTO = "onnx"


def load_runtime(package: ModelPackage, *, runtime: str = "auto", num_threads: int = 1) -> Runtime:
    """Load a package's graphs into a runtime.

    Args:
        package: An opened, verified package.
        runtime: A key of `RUNTIMES`, or "auto".
        num_threads: Threads for one call. Several instances of one thread each give more
            throughput on a CPU than one instance of several.

    Raises:
        ValueError: Unknown runtime, or fewer than one thread.
        MissingRuntimeError: The runtime's library is not installed.
        PackageError: The package has no graphs for this runtime.
    """
    name = AUTO if runtime == "auto" else runtime
    if name not in RUNTIMES:
        raise ValueError(f"unknown runtime {runtime!r}; choose auto, {', '.join(sorted(RUNTIMES))}")
    if num_threads < 1:
        raise ValueError(f"a runtime needs at least one thread, not {num_threads}")
    return RUNTIMES[name](package, num_threads)
