"""What this machine can compute with: CPU features, GPUs, and installed runtime libraries."""

import ctypes
import logging
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal

from model.runtime.base import Device

LOGGER = logging.getLogger(__name__)
RuntimeName = Literal["onnx", "openvino", "tensorrt", "torch"]
CpuFeature = Literal["bf16", "fast_bf16", "vnni", "avx2"]
# CPU flags of native support. OpenVINO also reports bf16 where it emulates it in float32. With AMX,
# and on AMD's CPUs, bf16 is faster than float32; on Intel's with AVX-512 alone it is slower.
FLAGS: Final[dict[CpuFeature, frozenset[str]]] = {
    "bf16": frozenset({"avx512_bf16", "amx_bf16"}),
    "fast_bf16": frozenset({"amx_bf16"}),
    "vnni": frozenset({"avx512_vnni", "avx_vnni"}),
    "avx2": frozenset({"avx2"}),
}
PROC: Final = Path("/proc")
DEV: Final = Path("/dev")
# Distributions have these shared libraries only if they were built with CUDA.
ONNX_CUDA_LIBRARY: Final = "capi/*onnxruntime_providers_cuda*"
TORCH_CUDA_LIBRARY: Final = "lib/*torch_cuda*"
INSTALL: Final[dict[RuntimeName, str]] = {
    "onnx": "needs ONNX Runtime: pip install 'tipserve[cpu]'",
    "openvino": "needs OpenVINO: pip install 'tipserve[cpu]'",
    "tensorrt": "needs TensorRT: pip install 'tipserve[gpu]'",
    "torch": "needs torch and transformers: pip install 'tipserve[torch]'",
}
INSTALL_ONNX_GPU: Final = (
    "needs onnxruntime-gpu, which takes the place of onnxruntime: "
    "pip uninstall onnxruntime, then pip install 'tipserve[gpu]'"
)
INSTALL_TORCH_CUDA: Final = "needs a torch that was built with CUDA; this one was built without"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One NVIDIA GPU; unknown values are None.

    Attributes:
        name: The driver's name for it.
        compute_capability: Such as "9.0".
        memory_bytes: Total memory.
    """

    name: str
    compute_capability: str | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """The hardware that the choice of a backend depends on.

    Attributes:
        cpu_name: Model name; empty if unknown.
        cpu_features: Number formats with native support, and AVX2.
        gpus: GPUs that this process may use.
        memory_bytes: Memory of the machine; None if unknown.
    """

    cpu_name: str = ""
    cpu_features: frozenset[CpuFeature] = frozenset()
    gpus: tuple[Gpu, ...] = ()
    memory_bytes: int | None = None


def this_hardware(
    proc: Path = PROC, dev: Path = DEV, environment: Mapping[str, str] = os.environ
) -> Hardware:
    """Inspect this machine; with `nvidia-ml-py` also the details of its GPUs."""
    name, features = parse_cpu(_read(proc / "cpuinfo"))
    total = re.search(r"^MemTotal:\s+(\d+) kB", _read(proc / "meminfo"), re.MULTILINE)
    return Hardware(
        cpu_name=name,
        cpu_features=features,
        gpus=() if _are_gpus_hidden(environment) else _gpus(proc, dev),
        memory_bytes=int(total[1]) * 1024 if total else None,
    )


def parse_cpu(cpuinfo: str) -> tuple[str, frozenset[CpuFeature]]:
    """Name and number formats of an x86 processor.

    Args:
        cpuinfo: Text of `/proc/cpuinfo`. Other processors have no line `flags`, and so no
            features.
    """
    name = re.search(r"^model name\s*:\s*(.+?)\s*$", cpuinfo, re.MULTILINE)
    line = re.search(r"^flags\s*:(.*)$", cpuinfo, re.MULTILINE)
    flags = set(line[1].split()) if line else set()
    features = {feature for feature, needed in FLAGS.items() if flags & needed}
    is_amd = re.search(r"^vendor_id\s*:\s*AuthenticAMD\s*$", cpuinfo, re.MULTILINE)
    if is_amd and "bf16" in features:
        features.add("fast_bf16")
    return (name[1] if name else ""), frozenset(features)


def _are_gpus_hidden(environment: Mapping[str, str]) -> bool:
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    return visible is not None and visible.strip() in {"", "-1"}


def _gpus(proc: Path, dev: Path) -> tuple[Gpu, ...]:
    try:
        import pynvml  # noqa: PLC0415 - comes with the extra `gpu` only
    except ImportError:
        return _gpus_of_driver(proc, dev)
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        # A container without the driver's capability `utility` has CUDA and no NVML.
        found = _gpus_of_driver(proc, dev)
        if found:
            LOGGER.warning("NVML does not start (%s): details of the GPU are unknown", error)
        return found
    try:
        handles = [
            pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())
        ]
    except pynvml.NVMLError as error:
        LOGGER.warning("NVML cannot list the GPUs (%s): details of them are unknown", error)
        return _gpus_of_driver(proc, dev)
    return tuple(_gpu(pynvml, handle) for handle in handles)


def _gpu(nvml: Any, handle: Any) -> Gpu:
    """Read a GPU; a value that NVML does not give is unknown.

    A MIG slice has no permission for the memory of the whole GPU, and a GB10, which shares the
    CPU's memory, has none of its own.
    """

    def read(what: str, function: Callable[[Any], Any]) -> Any:
        try:
            return function(handle)
        except nvml.NVMLError as error:
            LOGGER.info("NVML does not give the %s of a GPU (%s)", what, error)
            return None

    memory = read("memory", nvml.nvmlDeviceGetMemoryInfo)
    capability = read("compute capability", nvml.nvmlDeviceGetCudaComputeCapability)
    return Gpu(
        name=read("name", nvml.nvmlDeviceGetName) or "NVIDIA GPU",
        compute_capability=None if capability is None else ".".join(map(str, capability)),
        memory_bytes=None if memory is None else memory.total,
    )


def _gpus_of_driver(proc: Path, dev: Path) -> tuple[Gpu, ...]:
    """GPUs that the driver lists; none in a container without GPU devices, which sees the list."""
    if not any(dev.glob("nvidia[0-9]*")):
        return ()
    texts = map(_read, sorted(proc.glob("driver/nvidia/gpus/*/information")))
    names = (re.search(r"^Model:\s*(.+?)\s*$", text, re.MULTILINE) for text in texts)
    return tuple(Gpu(name=name[1]) for name in names if name)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class InstalledLibraries:
    """The installed runtime libraries.

    Attributes:
        onnx: Devices that the installed ONNX Runtime supports; empty without one.
        openvino: Whether OpenVINO is installed.
        tensorrt: Whether TensorRT is installed.
        torch: Devices that torch supports; empty without torch or transformers.
    """

    onnx: frozenset[Device] = frozenset()
    openvino: bool = False
    tensorrt: bool = False
    torch: frozenset[Device] = frozenset()


def installed_libraries() -> InstalledLibraries:
    """Find the libraries without importing them: some take seconds."""
    torch = None if _folder("transformers") is None else _folder("torch")
    return InstalledLibraries(
        onnx=_devices(_folder("onnxruntime"), ONNX_CUDA_LIBRARY),
        openvino=_folder("openvino") is not None,
        tensorrt=_folder("tensorrt") is not None,
        torch=_devices(torch, TORCH_CUDA_LIBRARY),
    )


def _devices(library: Path | None, cuda_library: str) -> frozenset[Device]:
    if library is None:
        return frozenset()
    return frozenset(("cpu", "gpu") if any(library.glob(cuda_library)) else ("cpu",))


def _folder(module: str) -> Path | None:
    """The folder of an importable package."""
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0])


def trim() -> None:
    """Return every free page of the heap to the system.

    Takes milliseconds, without the GIL.
    """
    with suppress(AttributeError):  # other C libraries, such as musl, have no malloc_trim
        ctypes.CDLL(None).malloc_trim(0)
