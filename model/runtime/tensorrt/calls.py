"""Calls of CUDA's runtime whose errors are exceptions with a sentence, and not numbers.

`cuda.bindings.runtime` returns (error, values...) from every function.
"""

from typing import Any, Final

# By CUDA's own names, since a stand-in or another version may number them otherwise.
ADVICE: Final = {
    "cudaErrorMemoryAllocation": "the GPU's memory is full: use fewer lanes or smaller batches, or "
    "end what else runs on it",
    "cudaErrorInsufficientDriver": "the NVIDIA driver is missing or too old for this CUDA: update "
    "it, or install the extra 'gpu' for an older CUDA",
    "cudaErrorNoDevice": "nvidia-smi must list a GPU here; a container needs to be given it",
    "cudaErrorInvalidDevice": "CUDA_VISIBLE_DEVICES says which GPUs this process sees",
}
OTHER_ADVICE: Final = (
    "if it comes again, restart the process: such errors can spoil all later calls"
)


class GpuError(RuntimeError):
    """CUDA or TensorRT could not do something; the message says what, why and what to try.

    Attributes:
        code: CUDA's name of the error; empty where it was TensorRT's.
    """

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class Cuda:
    """CUDA's runtime: `cuda("cudaMalloc", "reserve memory", 1024)` returns the values alone."""

    def __init__(self, runtime: Any) -> None:
        """Wrap `cuda.bindings.runtime`."""
        self.runtime = runtime

    def __call__(self, function: str, doing: str, *arguments: Any) -> Any:
        """Call a function.

        Args:
            function: Its name in CUDA.
            doing: What it does, for the error: "reserve 4 bytes".
            arguments: As CUDA takes them.

        Returns:
            None, the value, or a tuple of values.

        Raises:
            GpuError: CUDA says that it failed.
        """
        error, *values = getattr(self.runtime, function)(*arguments)
        if error != self.runtime.cudaError_t.cudaSuccess:
            raise self._as_exception(error, doing)
        return values[0] if len(values) == 1 else tuple(values) or None

    def _as_exception(self, error: Any, doing: str) -> GpuError:
        # Drivers may report errors that these bindings do not know.
        code = str(getattr(error, "name", error))
        _, text = self.runtime.cudaGetErrorString(error)
        told = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
        advice = ADVICE.get(code, OTHER_ADVICE)
        return GpuError(f"the GPU could not {doing}: {told} ({code}); {advice}", code)
