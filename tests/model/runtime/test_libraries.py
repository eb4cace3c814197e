"""Libraries are found by their files, and their kind by what lies beside them."""

import sys
from pathlib import Path

import pytest

from model.runtime.libraries import Libraries, installed_libraries


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of packages, the only one that is searched."""
    for name in ("onnxruntime", "openvino", "tensorrt", "torch", "transformers"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    return tmp_path


def add(site: Path, *files: str) -> None:
    for file in files:
        path = site / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_nothing_is_found_where_nothing_is(site: Path) -> None:
    assert installed_libraries() == Libraries()


def test_the_cpu_builds(site: Path) -> None:
    add(site, "onnxruntime/__init__.py", "openvino/__init__.py", "torch/__init__.py")
    assert installed_libraries() == Libraries(onnx=frozenset({"cpu"}), openvino=True)
    add(site, "transformers/__init__.py")
    assert installed_libraries().torch == {"cpu"}, "torch alone has no network"


def test_the_gpu_builds(site: Path) -> None:
    capi = "onnxruntime/capi"
    add(site, "onnxruntime/__init__.py", f"{capi}/libonnxruntime_providers_cuda.so")
    assert installed_libraries().onnx == {"cpu", "cuda"}
    add(site, f"{capi}/libonnxruntime_providers_tensorrt.so", "tensorrt/__init__.py")
    add(site, "torch/__init__.py", "torch/lib/libtorch_cuda.so", "transformers/__init__.py")
    found = installed_libraries()
    assert found.onnx == {"cpu", "cuda", "tensorrt"}
    assert found.torch == {"cpu", "gpu"}
    assert found.tensorrt


def test_a_module_that_may_not_be_imported_is_not_there(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(site, "openvino/__init__.py")
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert not installed_libraries().openvino
