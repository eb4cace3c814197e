"""Import TensorRT and CUDA's runtime, raise CUDA's errors, and forward TensorRT's log."""

import logging
import re
from collections import deque
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from model.installation import install
from model.runtime.base import MissingRuntimeError, UnusableRuntimeError

# By name, since the numbers differ between versions.
ADVICE: Final = {
    "cudaErrorMemoryAllocation": "the GPU's memory is full: use fewer lanes or smaller batches, or "
    "end what else runs on it",
    "cudaErrorInsufficientDriver": "the NVIDIA driver is missing or too old for CUDA 13, which "
    "needs 580 or newer: update it, or install 'tipserve[gpu-cuda12]' for a driver from 525 on",
    "cudaErrorNoDevice": "nvidia-smi must list a GPU; a container needs access to it",
    "cudaErrorInvalidDevice": "CUDA_VISIBLE_DEVICES limits which GPUs this process sees",
}
OTHER_ADVICE: Final = (
    "if it happens again, restart the process: such errors can break all later calls"
)
LOGGER = logging.getLogger("tensorrt")
MAX_ERRORS = 8


class GpuError(UnusableRuntimeError):
    """CUDA or TensorRT failed; the message has the call, the reason and advice."""


class Cuda:
    """Calls CUDA's runtime and raises its errors: `cuda("cudaMalloc", "reserve memory", 1024)`.

    The functions of `cuda.bindings.runtime` return (error, values...).
    """

    def __init__(self, runtime: Any) -> None:
        self.runtime = runtime

    def __call__(self, function: str, doing: str, *arguments: Any) -> Any:
        """Call a function for what `doing` says; returns None, the value, or a tuple of values.

        Raises:
            GpuError: The call failed.
        """
        error, *values = getattr(self.runtime, function)(*arguments)
        if error == self.runtime.cudaError_t.cudaSuccess:
            return values[0] if len(values) == 1 else tuple(values) or None
        # Drivers may report errors that these bindings do not know.
        code = str(getattr(error, "name", error))
        _, text = self.runtime.cudaGetErrorString(error)
        told = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
        advice = ADVICE.get(code, OTHER_ADVICE)
        raise GpuError(f"the GPU could not {doing}: {told} ({code}); {advice}")


class LibraryLog:
    """Forwards TensorRT's messages to Python's log, and keeps its last errors for exceptions.

    TensorRT returns None or False on failure and reports the reason only to the first logger of a
    process, which it uses for all later objects; so there is only one.
    """

    def __init__(self, trt: Any) -> None:
        levels = {
            trt.ILogger.Severity.INTERNAL_ERROR: logging.ERROR,
            trt.ILogger.Severity.ERROR: logging.ERROR,
            trt.ILogger.Severity.WARNING: logging.WARNING,
            trt.ILogger.Severity.INFO: logging.DEBUG,
        }
        errors: deque[str] = deque(maxlen=MAX_ERRORS)

        class Forward(trt.ILogger):  # type: ignore[misc]
            """Called by the library, from any of its threads."""

            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                """Forward a message; verbose ones, thousands for each graph, are dropped."""
                level = levels.get(severity)
                if level is None:
                    return
                LOGGER.log(level, "%s", message.strip())
                if level == logging.ERROR:
                    errors.append(message.strip())

        self._errors = errors
        self.logger = Forward()

    def take_errors(self) -> str:
        """The errors since the last call, also of other lanes, as part of a sentence."""
        told = []
        while self._errors:
            told.append(self._errors.popleft())
        return "; ".join(told) or "TensorRT gave no reason"


@cache
def library_log(trt: Any) -> LibraryLog:
    """The log of a module `tensorrt`, which lives as long as the process."""
    return LibraryLog(trt)


@dataclass(frozen=True, slots=True)
class GpuLibraries:
    """The modules `tensorrt` and `cuda`, and TensorRT's log; tests replace them."""

    trt: Any
    cuda: Cuda
    log: LibraryLog


def load_libraries() -> GpuLibraries:
    """Import TensorRT and CUDA's runtime; MissingRuntimeError if one cannot be loaded."""
    try:
        import tensorrt  # noqa: PLC0415 - only when this runtime is chosen
        from cuda.bindings import runtime  # noqa: PLC0415
    except (ImportError, OSError) as error:
        raise MissingRuntimeError(
            f"the runtime 'tensorrt' needs TensorRT and cuda-python: {install('gpu')} ({error})"
        ) from error
    return GpuLibraries(tensorrt, Cuda(runtime), library_log(tensorrt))


def free_gpu_memory(in_use_bytes: int = 0) -> int | None:
    """Free bytes of the GPU that this process computes on, and those in use; None if unknown.

    From CUDA, since NVML does not answer for a MIG slice or a GB10. Call it once a runtime uses the
    GPU: otherwise CUDA starts for it, which takes some hundred MB of the GPU.
    """
    try:
        from cuda.bindings import runtime  # noqa: PLC0415 - as above
    except (ImportError, OSError):
        return None
    error, *sizes = runtime.cudaMemGetInfo()
    return int(sizes[0]) + in_use_bytes if error == runtime.cudaError_t.cudaSuccess else None


def device_name(libraries: GpuLibraries) -> str:
    """All that decides whether an engine runs on the first GPU that this process sees.

    Such as "nvidia-h100-80gb-hbm3-cc-9.0-trt-10.16.1-cuda-13", a name for a folder.

    Raises:
        GpuError: There is no GPU or no driver.
    """
    cuda = libraries.cuda
    gpu = cuda("cudaGetDeviceProperties", "be asked what it is", 0)
    driver = cuda("cudaDriverGetVersion", "be asked for the driver's version")
    name = (gpu.name.decode() if isinstance(gpu.name, bytes) else gpu.name).rstrip("\0")
    versions = f"cc {gpu.major}.{gpu.minor} trt {libraries.trt.__version__} cuda {driver // 1000}"
    return re.sub(r"[^a-z0-9.]+", "-", f"{name} {versions}".lower())
