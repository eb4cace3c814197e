"""Load a package into a runtime."""

from collections.abc import Callable
from typing import Final

from model.package import ModelPackage
from model.runtime.base import LaneShare, Runtime
from model.runtime.choice import AUTO, RuntimeChoice, RuntimeRequest, choose_runtime
from model.runtime.onnx_runtime import OnnxRuntime
from model.runtime.openvino_runtime import OpenVinoRuntime
from model.runtime.tensorrt.runtime import TensorRtRuntime
from model.runtime.torch_runtime import TorchRuntime

RUNTIMES: dict[str, Callable[[ModelPackage, RuntimeChoice, LaneShare], Runtime]] = {
    "onnx": OnnxRuntime,
    "openvino": OpenVinoRuntime,
    "tensorrt": TensorRtRuntime,
    "torch": TorchRuntime,
}
ONE_LANE: Final = LaneShare()
# Runtimes that fail to load without a GPU.
NEEDS_GPU = frozenset({"tensorrt"})


def load_runtime(
    package: ModelPackage,
    *,
    runtime: str = AUTO,
    precision: str = AUTO,
    device: str = AUTO,
    num_threads: int = 1,
) -> Runtime:
    """Choose a runtime and load a package's graphs into it.

    Args:
        package: An opened, verified package.
        runtime: A key of `RUNTIMES`, or "auto".
        precision: As in `RuntimeRequest`.
        device: As in `RuntimeRequest`.
        num_threads: Threads of one call. On a CPU, several instances with one thread each have
            more throughput than one instance with several.

    Raises:
        UnusableRuntimeError: The choice is not possible.
        MissingRuntimeError: The runtime's library is not installed.
        PackageError: The package has no graphs for this runtime.
    """
    request = RuntimeRequest(runtime=runtime, precision=precision, device=device)
    choice = choose_runtime(package, request)
    return load_chosen(package, choice, LaneShare(num_threads=num_threads))


def load_chosen(
    package: ModelPackage, choice: RuntimeChoice, share: LaneShare = ONE_LANE
) -> Runtime:
    """Load a package into the runtime of `choose_runtime`; raises as `load_runtime` does."""
    return RUNTIMES[choice.runtime](package, choice, share)
