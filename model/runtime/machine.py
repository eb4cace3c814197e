"""What this machine can compute with: CPU features, GPUs, and installed runtime libraries."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal

# What this machine computes with: number formats of its processor, its GPUs, its memory.

CpuFeature = Literal["bf16", "amx", "vnni"]
# The flags of x86 processors that compute so themselves. OpenVINO names bf16 among what it can do
# also where it only imitates it, by AVX-512 in float32.
FLAGS: Final[dict[CpuFeature, frozenset[str]]] = {
    "bf16": frozenset({"avx512_bf16", "amx_bf16"}),
    "amx": frozenset({"amx_tile"}),
    "vnni": frozenset({"avx512_vnni", "avx_vnni"}),
}
PROC: Final = Path("/proc")
DEV: Final = Path("/dev")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One NVIDIA GPU; what is not known is None.

    Attributes:
        name: As the driver calls it.
        compute_capability: Such as "9.0".
        memory_bytes: Of the whole GPU.
    """

    name: str
    compute_capability: str | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """What a choice of runtime depends on.

    Attributes:
        cpu_name: As the processor calls itself; empty where it does not.
        cpu_features: Number formats that the processor computes in itself.
        gpus: Those that this process may use.
        memory_bytes: Of the machine; None where it is not known.
    """

    cpu_name: str = ""
    cpu_features: frozenset[CpuFeature] = frozenset()
    gpus: tuple[Gpu, ...] = ()
    memory_bytes: int | None = None


def this_hardware(
    proc: Path = PROC, dev: Path = DEV, environment: Mapping[str, str] = os.environ
) -> Hardware:
    """Look at this machine; needs no library, and knows more of GPUs with `nvidia-ml-py`."""
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
        cpuinfo: The text of `/proc/cpuinfo`. Other processors have no line `flags`: nothing here
            is known to be fast on them, so they have no features.
    """
    name = re.search(r"^model name\s*:\s*(.+?)\s*$", cpuinfo, re.MULTILINE)
    line = re.search(r"^flags\s*:(.*)$", cpuinfo, re.MULTILINE)
    flags = set(line[1].split()) if line else set()
    features = frozenset(feature for feature, needed in FLAGS.items() if flags & needed)
    return (name[1] if name else ""), features


def _are_gpus_hidden(environment: Mapping[str, str]) -> bool:
    """Whether CUDA was told to see none."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    return visible is not None and visible.strip() in {"", "-1"}


def _gpus(proc: Path, dev: Path) -> tuple[Gpu, ...]:
    try:
        import pynvml  # noqa: PLC0415 - comes with the extra `gpu` only
    except ImportError:
        return _gpus_of_driver(proc, dev)
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    try:
        handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
        return tuple(_gpu(pynvml, handle) for handle in handles)
    finally:
        pynvml.nvmlShutdown()


def _gpu(nvml: Any, handle: Any) -> Gpu:
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    return Gpu(
        name=nvml.nvmlDeviceGetName(handle),
        compute_capability=f"{major}.{minor}",
        memory_bytes=nvml.nvmlDeviceGetMemoryInfo(handle).total,
    )


def _gpus_of_driver(proc: Path, dev: Path) -> tuple[Gpu, ...]:
    """Those that the driver lists; a container sees the list also where it was given no GPU."""
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


# Which runtime libraries are installed, without importing them: some take seconds.

RuntimeName = Literal["onnx", "openvino", "tensorrt", "torch"]
# ONNX Runtime's execution providers.
Provider = Literal["cpu", "cuda", "tensorrt"]
# Each distribution brings a shared library only where it can do what the library is for.
PROVIDER_LIBRARIES: Final[dict[Provider, str]] = {
    "cuda": "capi/*onnxruntime_providers_cuda*",
    "tensorrt": "capi/*onnxruntime_providers_tensorrt*",
}
TORCH_CUDA_LIBRARY: Final = "lib/*torch_cuda*"
# What has to be installed where something is missing.
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
class Libraries:
    """What is installed.

    Attributes:
        onnx: Providers of the ONNX Runtime that is there; empty without one.
        openvino: Whether it is there.
        tensorrt: Whether it is there.
        torch: Devices that torch can use, where transformers is there beside it.
    """

    onnx: frozenset[Provider] = frozenset()
    openvino: bool = False
    tensorrt: bool = False
    torch: frozenset[Literal["cpu", "gpu"]] = frozenset()


def installed_libraries() -> Libraries:
    """Look for each library as an import would."""
    onnx, torch = _folder("onnxruntime"), _folder("torch")
    providers: set[Provider] = set()
    if onnx is not None:
        providers = {name for name, file in PROVIDER_LIBRARIES.items() if any(onnx.glob(file))}
        providers.add("cpu")
    devices: set[Literal["cpu", "gpu"]] = set()
    if torch is not None and _folder("transformers") is not None:
        devices = {"cpu", "gpu"} if any(torch.glob(TORCH_CUDA_LIBRARY)) else {"cpu"}
    return Libraries(
        onnx=frozenset(providers),
        openvino=_folder("openvino") is not None,
        tensorrt=_folder("tensorrt") is not None,
        torch=frozenset(devices),
    )


def _folder(module: str) -> Path | None:
    """The folder of a package that could be imported."""
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0])
