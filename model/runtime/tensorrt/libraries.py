"""The two libraries that everything here asks: TensorRT, and CUDA's runtime from `cuda-python`.

The only place that imports them; the others are given them, which is what lets the tests put
stand-ins in their place.
"""

import re
from dataclasses import dataclass
from typing import Any

from model.runtime.base import MissingRuntimeError
from model.runtime.tensorrt.calls import Cuda
from model.runtime.tensorrt.log_bridge import LibraryLog, library_log


@dataclass(frozen=True, slots=True)
class Libraries:
    """What is asked instead of an import.

    Attributes:
        trt: The module `tensorrt`.
        cuda: CUDA's runtime, with its errors as exceptions.
        log: Where TensorRT's messages go.
    """

    trt: Any
    cuda: Cuda
    log: LibraryLog


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFacts:
    """What of a GPU and its libraries decides whether an engine runs there.

    Attributes:
        gpu: The model's name.
        compute_capability: Such as "9.0".
        tensorrt: Version of the library.
        cuda_major: Of the CUDA that the driver supports.
    """

    gpu: str
    compute_capability: str
    tensorrt: str
    cuda_major: int

    @property
    def folder(self) -> str:
        """Name of the folder for everything that was made on such a device."""
        parts = (self.gpu, "cc", self.compute_capability, "trt", self.tensorrt, "cuda")
        text = f"{'-'.join(parts)}-{self.cuda_major}".lower()
        return re.sub(r"[^a-z0-9.]+", "-", text)


def load_libraries() -> Libraries:
    """Import both.

    Raises:
        MissingRuntimeError: One of them is not installed, or cannot be loaded.
    """
    try:
        import tensorrt  # noqa: PLC0415 - only when this runtime is chosen
        from cuda.bindings import runtime  # noqa: PLC0415
    except (ImportError, OSError) as error:
        raise MissingRuntimeError(
            "the runtime 'tensorrt' needs TensorRT and cuda-python: pip install 'tipserve[gpu]' "
            f"({error})"
        ) from error
    return Libraries(tensorrt, Cuda(runtime), library_log(tensorrt))


def device_facts(libraries: Libraries, device_index: int) -> DeviceFacts:
    """What this process's GPU is.

    Raises:
        GpuError: There is none, or no driver.
    """
    cuda = libraries.cuda
    properties = cuda(
        "cudaGetDeviceProperties", f"be asked what GPU {device_index} is", device_index
    )
    name = properties.name
    driver = cuda("cudaDriverGetVersion", "be asked for the driver's version")
    return DeviceFacts(
        gpu=(name.decode() if isinstance(name, bytes) else name).rstrip("\0"),
        compute_capability=f"{properties.major}.{properties.minor}",
        tensorrt=libraries.trt.__version__,
        cuda_major=driver // 1000,
    )
