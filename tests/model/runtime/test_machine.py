"""CPU features, GPUs and libraries of the machine are found."""

import sys
from pathlib import Path
from typing import Any

import pytest

from model.runtime.machine import InstalledLibraries, installed_libraries, parse_cpu

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
