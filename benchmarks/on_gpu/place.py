"""Device of the benchmark: a GPU, or a CPU with a tiny model to test the script."""

from dataclasses import dataclass
from typing import Literal

from model.runtime.base import MissingRuntimeError


class NoGpu(RuntimeError):
    """No GPU is available."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Device and sizes of the measurement.

    Attributes:
        device: Device name in torch.
        title: Name for tables and JSON; states when it is not a GPU.
        gemm_sides: Sides of the square matrix products; the best one is the peak.
        gemm_precisions: Precisions of these products.
    """

    device: Literal["cuda", "cpu"]
    title: str
    gemm_sides: tuple[int, ...]
    gemm_precisions: tuple[str, ...]

    @property
    def is_gpu(self) -> bool:
        """Whether the numbers are meaningful."""
        return self.device == "cuda"


def find_place(*, is_cpu_tiny: bool) -> Place:
    """Return the GPU, or the CPU if requested.

    Raises:
        MissingRuntimeError: torch is not installed.
        NoGpu: torch sees no GPU.
    """
    if is_cpu_tiny:
        return Place(
            device="cpu",
            title="NO GPU: a tiny model on the CPU, which shows that the script works and no more",
            gemm_sides=(128, 256),
            gemm_precisions=("fp32",),
        )
    try:
        import torch  # noqa: PLC0415 - torch may be missing
    except ImportError as error:
        raise MissingRuntimeError(
            "the benchmark needs torch: pip install 'tipserve[torch]'"
        ) from error
    if not torch.cuda.is_available():
        raise NoGpu(
            "there is no GPU here that torch can use: run this where nvidia-smi lists one, with a "
            "torch that was built for CUDA; --cpu-tiny shows that the script works without one"
        )
    return Place(
        device="cuda",
        title=torch.cuda.get_device_name(0),
        gemm_sides=(1024, 2048, 4096, 8192, 16384),
        gemm_precisions=("bf16", "fp16", "fp32"),
    )
