"""Which runtime libraries are installed, without importing them: some take seconds."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal

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
