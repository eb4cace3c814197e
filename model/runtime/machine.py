"""What this machine can compute with: CPU features, a GPU, and installed runtime libraries."""

import ctypes
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal

from model.installation import install
from model.runtime.base import Device

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
    "onnx": f"needs ONNX Runtime: {install('cpu')}",
    "openvino": f"needs OpenVINO: {install('cpu')}",
    "tensorrt": f"needs TensorRT: {install('gpu')}",
    "torch": f"needs torch and transformers: {install('torch')}",
}
INSTALL_ONNX_GPU: Final = (
    "needs onnxruntime-gpu, which takes the place of onnxruntime: "
    f"pip uninstall onnxruntime, then {install('gpu')}"
)
INSTALL_TORCH_CUDA: Final = "needs a torch that was built with CUDA; this one was built without"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """What the choice of a backend depends on; the name is empty if unknown."""

    cpu_name: str = ""
    cpu_features: frozenset[CpuFeature] = frozenset()
    has_gpu: bool = False


def this_hardware(
    proc: Path = PROC, dev: Path = DEV, environment: Mapping[str, str] = os.environ
) -> Hardware:
    """Inspect this machine; a container has devices only for the GPUs that it may use."""
    cpuinfo = proc / "cpuinfo"
    name, features = parse_cpu(cpuinfo.read_text("utf-8") if cpuinfo.exists() else "")
    is_hidden = environment.get("CUDA_VISIBLE_DEVICES", "0").strip() in {"", "-1"}
    has_device = any(dev.glob("nvidia[0-9]*"))
    return Hardware(cpu_name=name, cpu_features=features, has_gpu=has_device and not is_hidden)


def parse_cpu(cpuinfo: str) -> tuple[str, frozenset[CpuFeature]]:
    """Name and features of an x86 processor, from the text of `/proc/cpuinfo`."""
    name = re.search(r"^model name\s*:\s*(.+?)\s*$", cpuinfo, re.MULTILINE)
    line = re.search(r"^flags\s*:(.*)$", cpuinfo, re.MULTILINE)
    flags = set(line[1].split()) if line else set()
    features = {feature for feature, needed in FLAGS.items() if flags & needed}
    is_amd = re.search(r"^vendor_id\s*:\s*AuthenticAMD\s*$", cpuinfo, re.MULTILINE)
    if is_amd and "bf16" in features:
        features.add("fast_bf16")
    return (name[1] if name else ""), frozenset(features)


@dataclass(frozen=True, slots=True, kw_only=True)
class InstalledLibraries:
    """The installed runtime libraries, and the devices that they support."""

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
    """Return every free page of the heap to the system, in milliseconds and without the GIL."""
    with suppress(AttributeError):  # other C libraries, such as musl, have no malloc_trim
        ctypes.CDLL(None).malloc_trim(0)
