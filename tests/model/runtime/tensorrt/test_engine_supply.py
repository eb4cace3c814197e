"""Where an engine comes from: the package, the cache, or the builder. On stand-ins."""

import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from model.graphs import VISION_FILE
from model.package import ModelPackage, write_manifest
from model.runtime.tensorrt.engine_build import build_engine
from model.runtime.tensorrt.libraries import DeviceFacts
from model.runtime.tensorrt.engine_supply import keys_for, package_engine_file
from tests.model.runtime.tensorrt.test_engine_build import source_of

if TYPE_CHECKING:
    from tests.model.runtime.tensorrt.conftest import MakeGpu, StandInGpu

DEVICE = DeviceFacts(gpu="Stand-in GPU", compute_capability="9.0", tensorrt="11.4.0", cuda_major=13)
OWN = "tensorrt/9.0-11.4.0/vision_model.plan"


def with_engine(package: ModelPackage, folder: Path, name: str, plan: bytes) -> ModelPackage:
    """A copy of the package that carries an engine."""
    shutil.copytree(package.path, folder)
    (folder / name).parent.mkdir(parents=True)
    (folder / name).write_bytes(plan)
    return write_manifest(folder, package.manifest)


def a_plan(gpu: "StandInGpu") -> bytes:
    return build_engine(gpu.libraries, source_of(gpu, gpu.options.engine), b"").plan


def test_where_a_package_carries_engines(gpu: "StandInGpu") -> None:
    keys = keys_for(gpu.package, "fp32", device=DEVICE, options=gpu.options)
    assert [package_engine_file(key) for key in keys] == [OWN, OWN.replace("vision", "text")]


def test_the_packages_own_engine_is_used(make_gpu: "MakeGpu", tmp_path: Path) -> None:
    first = make_gpu()
    package = with_engine(first.package, tmp_path / "package", OWN, a_plan(first))
    gpu = make_gpu(package)
    gpu.lane()
    assert gpu.trt.num_built == 1  # texts
    assert not list(gpu.options.cache_folder.rglob("vision*"))


@pytest.mark.parametrize(
    "name", ["tensorrt/8.9-11.4.0/vision_model.plan", "tensorrt/9.0-10.9.0/vision_model.plan"]
)
def test_one_for_another_device_is_left_alone(
    make_gpu: "MakeGpu", tmp_path: Path, name: str
) -> None:
    first = make_gpu()
    gpu = make_gpu(with_engine(first.package, tmp_path / "package", name, a_plan(first)))
    gpu.lane()
    assert gpu.trt.num_built == 2


def test_it_can_be_left_out_for_packages_from_strangers(
    make_gpu: "MakeGpu", tmp_path: Path
) -> None:
    first = make_gpu()
    package = with_engine(first.package, tmp_path / "package", OWN, a_plan(first))
    gpu = make_gpu(package, use_package_engines=False)
    gpu.lane()
    assert gpu.trt.num_built == 2


def test_one_that_is_refused_is_replaced(
    make_gpu: "MakeGpu", tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    package = with_engine(make_gpu().package, tmp_path / "package", OWN, b"no engine")
    gpu = make_gpu(package)
    with caplog.at_level(logging.WARNING):
        gpu.lane()
    assert f"refuses the package's own engine {OWN}" in caplog.text
    assert gpu.trt.num_built == 2


def test_a_graph_that_is_not_there_in_the_precision_runs_in_another_and_is_told(
    make_gpu: "MakeGpu", tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "package"
    shutil.copytree(make_gpu().package.path, folder)
    shutil.copy(folder / VISION_FILE, folder / "onnx/vision_model_bf16.onnx")
    gpu = make_gpu(write_manifest(folder, make_gpu().package.manifest))
    with caplog.at_level(logging.INFO):
        assert gpu.lane("bf16").precision == "bf16"
    assert "the text graph runs in fp32, not in bf16" in caplog.text


def test_heads_are_built_too_and_depth_in_float32(gpu: "StandInGpu") -> None:
    files = dict(gpu.package.manifest.files)
    for part in ("vision", "text", "depth", "normals"):
        for suffix in (".onnx", "_fp16.onnx"):
            files[f"onnx/{part}_model{suffix}"] = files[VISION_FILE]
    manifest = gpu.package.manifest.model_copy(update={"files": files, "size_multiple": 28})
    package = ModelPackage(path=gpu.package.path, manifest=manifest)
    keys = keys_for(package, "fp16", device=DEVICE, options=gpu.options)
    assert [(key.part, key.precision) for key in keys] == [
        ("vision", "fp16"),
        ("text", "fp16"),
        ("depth", "fp32"),
        ("normals", "fp16"),
    ]
