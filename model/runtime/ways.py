"""The ways to compute a package, the fastest first, and what may be in the way of each."""

from dataclasses import dataclass
from typing import Final

from model.graphs import Precision
from model.manifest import Manifest
from model.package import PackageError
from model.runtime.base import Device, MissingRuntimeError, UnusableRuntimeError
from model.runtime.hardware import Hardware
from model.runtime.libraries import (
    INSTALL,
    INSTALL_ONNX_GPU,
    INSTALL_TORCH_CUDA,
    Libraries,
    Provider,
    RuntimeName,
)
from model.runtime.loaded_graphs import vision_file


@dataclass(frozen=True, slots=True)
class Way:
    """A runtime on a device, and what it can be told.

    Attributes:
        runtime: Its name.
        device: Where it computes.
        provider: Of ONNX Runtime.
        precisions: Those that it computes in, the fastest that may be exact enough first.
        unasked: Those of them that need not be named; all but fp32 must then be proven.
        is_named_only: Whether it is never taken unasked.
    """

    runtime: RuntimeName
    device: Device
    provider: Provider | None
    precisions: tuple[Precision, ...]
    unasked: tuple[Precision, ...] = ("fp32",)
    is_named_only: bool = False

    @property
    def label(self) -> str:
        """As a sentence calls it."""
        device = "the CPU" if self.device == "cpu" else "a GPU"
        through = {"cuda": " through CUDA", "tensorrt": " through TensorRT"}
        return f"{self.runtime} on {device}{through.get(self.provider or 'cpu', '')}"


# The fastest first. In float32 OpenVINO took 0.72 to 0.95 of ONNX Runtime's time for images, on a
# CPU with AMX, for the bundled student and for a B/14. A proof says nothing of ONNX Runtime on a
# GPU: it is measured on the CPU, where float16 is computed as float32.
WAYS: Final = (
    Way("tensorrt", "gpu", None, ("fp16", "bf16", "fp32", "int8"), ("fp16", "bf16", "fp32")),
    Way("onnx", "gpu", "cuda", ("fp32", "fp16", "bf16")),
    Way("torch", "gpu", None, ("bf16", "fp32", "fp16"), ("bf16", "fp32")),
    # It rounds float32 to TF32 and cannot be told not to, so it offers none.
    Way("onnx", "gpu", "tensorrt", ("fp16", "bf16", "int8"), is_named_only=True),
    Way("openvino", "cpu", None, ("bf16", "fp32", "int8", "int8_weights"), ("bf16", "fp32")),
    Way("onnx", "cpu", "cpu", ("fp32", "fp16", "int8", "int8_weights")),
    Way("torch", "cpu", None, ("fp32", "bf16")),
)


@dataclass(frozen=True, slots=True)
class Machine:
    """What there is to compute with."""

    hardware: Hardware
    libraries: Libraries


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why a way cannot be gone; the one that is met latest is the one worth telling.

    Attributes:
        depth: How many checks were passed before.
        text: Continues a sentence that names the way.
        error: What to raise where this was asked for.
    """

    depth: int
    text: str
    error: type[Exception] = UnusableRuntimeError


def find_obstacle(
    way: Way,
    precision: Precision,
    manifest: Manifest,
    machine: Machine,
) -> Obstacle | None:
    """What keeps this machine from computing the package so."""
    if way.device == "gpu" and not machine.hardware.gpus:
        return Obstacle(1, "there is no NVIDIA GPU that this process may use")
    missing = _missing_library(way, machine.libraries)
    if missing is not None:
        return Obstacle(2, f"it {missing}", MissingRuntimeError)
    if way.device == "cpu" and precision == "bf16" and "bf16" not in machine.hardware.cpu_features:
        return Obstacle(
            3, "this CPU does not compute in bf16 (no avx512_bf16 or amx_bf16), only imitates it"
        )
    file = vision_file(way.runtime, precision)
    if file not in manifest.files:
        text = f"model package {manifest.name!r} has no file {file!r}: export the model again"
        return Obstacle(4, text, PackageError)
    return None


def _missing_library(way: Way, libraries: Libraries) -> str | None:
    """What has to be installed for a way; None where nothing has."""
    if way.runtime == "onnx":
        if not libraries.onnx:
            return INSTALL["onnx"] if way.device == "cpu" else INSTALL_ONNX_GPU
        return None if way.provider in libraries.onnx else INSTALL_ONNX_GPU
    if way.runtime == "torch":
        if not libraries.torch:
            return INSTALL["torch"]
        return None if way.device in libraries.torch else INSTALL_TORCH_CUDA
    is_there = libraries.openvino if way.runtime == "openvino" else libraries.tensorrt
    return None if is_there else INSTALL[way.runtime]
