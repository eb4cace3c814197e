"""CPU features, GPUs and libraries of the machine are found."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from model.runtime.machine import (
    Gpu,
    InstalledLibraries,
    installed_libraries,
    parse_cpu,
    this_hardware,
)

SAPPHIRE = """processor\t: 0
model name\t: Intel(R) Xeon(R) Processor
flags\t\t: fpu sse2 avx2 avx512f avx512_bf16 avx512_vnni amx_bf16 amx_tile amx_int8

processor\t: 1
model name\t: Intel(R) Xeon(R) Processor
flags\t\t: fpu sse2
"""
SKYLAKE = "vendor_id\t: GenuineIntel\nmodel name\t: Skylake\nflags\t\t: fpu sse2 avx2 avx512f\n"
COOPER_LAKE = SKYLAKE.replace("Skylake", "Cooper Lake").replace("avx512f", "avx512f avx512_bf16")
FAST_BF16 = {"bf16", "fast_bf16", "avx2"}
GRAVITON = "processor\t: 0\nFeatures\t: fp asimd bf16 i8mm\n"


@pytest.mark.parametrize(
    ("cpuinfo", "name", "features"),
    [
        (SAPPHIRE, "Intel(R) Xeon(R) Processor", {"bf16", "fast_bf16", "vnni", "avx2"}),
        (COOPER_LAKE, "Cooper Lake", {"bf16", "avx2"}),
        (COOPER_LAKE.replace("GenuineIntel", "AuthenticAMD"), "Cooper Lake", FAST_BF16),
        (SKYLAKE.replace("GenuineIntel", "AuthenticAMD"), "Skylake", {"avx2"}),
        (SKYLAKE + "bugs\t: avx512_bf16\n", "Skylake", {"avx2"}),
        (SKYLAKE.replace("avx512f", "xavx512_bf16 avx_vnni"), "Skylake", {"vnni", "avx2"}),
        (GRAVITON, "", set()),
        ("", "", set()),
    ],
)
def test_cpu_features_are_read_from_the_flags(cpuinfo: str, name: str, features: set[str]) -> None:
    found, has = parse_cpu(cpuinfo)
    assert (found, set(has)) == (name, features)


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A folder with `proc` and `dev` of a machine with one GPU, whose driver lists it."""
    listed = tmp_path / "proc" / "driver" / "nvidia" / "gpus" / "0000:65:00.0"
    listed.mkdir(parents=True)
    (listed / "information").write_text("Model: \t\t NVIDIA H100 80GB HBM3\nIRQ: 7\n")
    (tmp_path / "proc" / "cpuinfo").write_text(SAPPHIRE)
    (tmp_path / "proc" / "meminfo").write_text("MemTotal:       2048 kB\nMemFree: 3 kB\n")
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidia0").touch()
    return tmp_path


def gpus_of(machine: Path, **environment: str) -> tuple[Gpu, ...]:
    return this_hardware(machine / "proc", machine / "dev", environment).gpus


def test_without_nvml_the_driver_names_the_visible_gpus(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    hardware = this_hardware(machine / "proc", machine / "dev", {})
    assert hardware.gpus == (Gpu(name="NVIDIA H100 80GB HBM3"),)
    assert hardware.memory_bytes == 2048 * 1024
    assert "fast_bf16" in hardware.cpu_features
    for hidden in ("", "-1", " "):
        assert gpus_of(machine, CUDA_VISIBLE_DEVICES=hidden) == ()
    assert len(gpus_of(machine, CUDA_VISIBLE_DEVICES="0")) == 1
    (machine / "dev" / "nvidia0").unlink()
    assert gpus_of(machine) == (), "a container without GPU devices sees the driver's list too"


def nvml(*failing: str) -> Any:
    """A stand-in for pynvml, in which these calls fail."""

    class NVMLError(Exception):
        pass

    def fail(*_: object) -> None:
        raise NVMLError("Insufficient Permissions")

    calls: dict[str, Any] = dict(
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 1,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetName=lambda handle: f"GPU {handle}",
        nvmlDeviceGetCudaComputeCapability=lambda _: (9, 0),
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(total=80 + handle),
    )
    return SimpleNamespace(NVMLError=NVMLError, **{**calls, **dict.fromkeys(failing, fail)})


OF_DRIVER = (Gpu(name="NVIDIA H100 80GB HBM3"),)


@pytest.mark.parametrize(
    ("failing", "found"),
    [
        ("", (Gpu(name="GPU 0", compute_capability="9.0", memory_bytes=80),)),
        ("nvmlDeviceGetMemoryInfo", (Gpu(name="GPU 0", compute_capability="9.0"),)),
        (
            "nvmlDeviceGetCudaComputeCapability nvmlDeviceGetName",
            (Gpu(name="NVIDIA GPU", memory_bytes=80),),
        ),
        ("nvmlInit", OF_DRIVER),
        ("nvmlDeviceGetCount", OF_DRIVER),
        ("nvmlDeviceGetHandleByIndex", OF_DRIVER),
    ],
)
def test_gpus_are_read_from_nvml_of_which_each_call_may_fail(
    machine: Path, monkeypatch: pytest.MonkeyPatch, failing: str, found: tuple[Gpu, ...]
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml(*failing.split()))
    assert gpus_of(machine) == found


ORT, CUDA_PROVIDER = "onnxruntime/__init__.py", "onnxruntime/capi/libonnxruntime_providers_cuda.so"
TORCH, TRANSFORMERS = "torch/__init__.py", "transformers/__init__.py"


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ([], {}),
        ([ORT, TORCH], {"onnx": {"cpu"}}),  # torch needs transformers
        ([TORCH, TRANSFORMERS, "openvino/__init__.py"], {"torch": {"cpu"}, "openvino": True}),
        ([ORT, CUDA_PROVIDER, "tensorrt/__init__.py"], {"onnx": {"cpu", "gpu"}, "tensorrt": True}),
        ([TORCH, TRANSFORMERS, "torch/lib/libtorch_cuda.so"], {"torch": {"cpu", "gpu"}}),
    ],
)
def test_libraries_are_found_by_their_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[str], found: dict[str, Any]
) -> None:
    for name in ("onnxruntime", "openvino", "tensorrt", "torch", "transformers"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for file in files:
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert installed_libraries() == InstalledLibraries(**found)
