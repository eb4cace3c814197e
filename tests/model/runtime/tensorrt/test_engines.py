"""Engines are built, found in the package or the cache, and loaded."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from model.graphs import VISION_FILE
from model.package import ModelPackage, write_manifest
from model.runtime.tensorrt.cuda import DeviceFacts, GpuError
from model.runtime.tensorrt.engines import EngineSource, build_engine, keys_for, package_engine_file
from model.runtime.tensorrt.profiles import EngineOptions, profiles_for

if TYPE_CHECKING:
    from tests.model.runtime.tensorrt.conftest import MakeGpu, StandInGpu


# On stand-ins; `test_real_builder.py` has a real builder.


def source_of(gpu: "StandInGpu", options: EngineOptions) -> EngineSource:
    return EngineSource(
        graph=gpu.package.file(VISION_FILE),
        profiles=profiles_for("vision", gpu.package.manifest, options),
        options=options,
    )


CHANGED = EngineOptions(
    workspace_bytes=1 << 28, optimization_level=5, is_hardware_compatible=True, allow_tf32=True
)


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        (EngineOptions(), (set(), None, 3, "NONE")),
        (CHANGED, ({"TF32"}, 1 << 28, 5, "AMPERE_PLUS")),
    ],
)
def test_options_reach_the_builder(
    gpu: "StandInGpu", options: EngineOptions, settings: tuple[object, ...]
) -> None:
    build_engine(gpu.libraries, source_of(gpu, options), b"")
    (config,) = gpu.trt.configs
    flags, level = {flag.name for flag in config.flags}, config.builder_optimization_level
    compatibility = config.hardware_compatibility_level.name
    assert (flags, config.workspace, level, compatibility) == settings
    assert config.max_aux_streams == 0


def test_profiles_are_asked_for_as_planned(gpu: "StandInGpu") -> None:
    source = source_of(gpu, EngineOptions(max_batch=16, best_batch=4))
    build_engine(gpu.libraries, source, b"")
    asked = [profile.shapes["pixel_values"] for profile in gpu.trt.configs[0].profiles]
    planned = [profile["pixel_values"] for profile in source.profiles]
    assert asked == [(span.smallest, span.best, span.largest) for span in planned]


@pytest.mark.parametrize(
    ("kept", "used"), [(b"", b""), (b"of before", b"of before"), (b"foreign", b"")]
)
def test_timings_of_another_device_are_left_out(
    gpu: "StandInGpu", kept: bytes, used: bytes
) -> None:
    built = build_engine(gpu.libraries, source_of(gpu, EngineOptions()), kept)
    assert gpu.trt.configs[0].timings == used
    assert built.timings == used + b"t"


def test_a_build_works_without_a_timing_cache(gpu: "StandInGpu") -> None:
    gpu.trt.failing = {"create_timing_cache"}
    assert build_engine(gpu.libraries, source_of(gpu, EngineOptions()), b"kept").timings == b""


def test_a_missing_graph_is_told(gpu: "StandInGpu") -> None:
    source = replace(source_of(gpu, EngineOptions()), graph=Path("missing.onnx"))
    with pytest.raises(GpuError, match="refuses the graph missing"):
        build_engine(gpu.libraries, source, b"")


# Where an engine comes from: the package, the cache, or the builder. On stand-ins.

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


@pytest.mark.slow
def test_a_package_keeps_engines_by_device_and_version(gpu: "StandInGpu") -> None:
    keys = keys_for(gpu.package, "fp32", device=DEVICE, options=gpu.options)
    assert [package_engine_file(key) for key in keys] == [OWN, OWN.replace("vision", "text")]


@pytest.mark.parametrize(
    ("name", "uses_package_engines", "num_built"),
    [
        pytest.param(OWN, True, 1, id="for this device"),
        pytest.param(OWN, False, 2, id="not trusted"),
        pytest.param(OWN.replace("9.0-", "8.9-"), True, 2, id="for another GPU"),
        pytest.param(OWN.replace("11.4.0", "10.9.0"), True, 2, id="of another TensorRT"),
    ],
)
def test_a_package_engine_is_used_if_it_fits_and_is_trusted(
    make_gpu: "MakeGpu", tmp_path: Path, name: str, uses_package_engines: bool, num_built: int
) -> None:
    first = make_gpu()
    package = with_engine(first.package, tmp_path / "package", name, a_plan(first))
    gpu = make_gpu(package, use_package_engines=uses_package_engines)
    gpu.lane()
    assert gpu.trt.num_built == num_built
    assert len(list(gpu.options.cache_folder.rglob("vision*.plan"))) == num_built - 1


def test_a_refused_package_engine_is_built_again(
    make_gpu: "MakeGpu", tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    package = with_engine(make_gpu().package, tmp_path / "package", OWN, b"no engine")
    gpu = make_gpu(package)
    with caplog.at_level(logging.WARNING):
        gpu.lane()
    assert f"refuses the package's own engine {OWN}" in caplog.text
    assert gpu.trt.num_built == 2


def test_a_graph_missing_in_a_precision_runs_in_float32(
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
