"""Engines are built, found in the package or the cache, and loaded. On stand-ins."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from model.graphs import VISION_FILE
from model.package import ModelPackage, write_manifest
from model.runtime.tensorrt.cuda import DeviceFacts, GpuError
from model.runtime.tensorrt.engines import EngineSource, build_engine, keys_for
from model.runtime.tensorrt.profiles import EngineOptions, profiles_for

if TYPE_CHECKING:
    from tests.model.runtime.tensorrt.conftest import MakeGpu, StandInGpu


def source_of(gpu: "StandInGpu", options: EngineOptions) -> EngineSource:
    return EngineSource(
        graph=gpu.package.file(VISION_FILE),
        profiles=profiles_for("vision", gpu.package.manifest, options),
        options=options,
    )


CHANGED = EngineOptions(
    workspace_bytes=1 << 28, optimization_level=5, tf32=True, is_hardware_compatible=True
)


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        (EngineOptions(max_batch=16, best_batch=4), (None, 3, "NONE")),
        (CHANGED, (1 << 28, 5, "AMPERE_PLUS")),
    ],
)
def test_options_and_profiles_reach_the_builder(
    gpu: "StandInGpu", options: EngineOptions, settings: tuple[object, ...]
) -> None:
    source = source_of(gpu, options)
    build_engine(gpu.libraries, source, b"")
    (config,) = gpu.trt.configs
    level, compatibility = config.builder_optimization_level, config.hardware_compatibility_level
    assert (config.workspace, level, compatibility.name) == settings
    assert {flag.name for flag in config.flags} == ({"TF32"} if options.tf32 else set())
    assert {feature.name for feature in config.features} == {"RUNTIME_ACTIVATION_RESIZE_10_10"}
    assert config.max_aux_streams == 0
    given = [profile.shapes["pixel_values"] for profile in config.profiles]
    planned = [profile["pixel_values"] for profile in source.profiles]
    assert given == [(span.smallest, span.best, span.largest) for span in planned]


@pytest.mark.parametrize(
    ("failing", "kept", "used", "timings"),
    [
        (set(), b"", b"", b"t"),
        (set(), b"of before", b"of before", b"of beforet"),
        (set(), b"foreign", b"", b"t"),
        ({"create_timing_cache"}, b"kept", None, b""),
    ],
)
def test_a_build_uses_earlier_timings_of_its_device_if_it_can(
    gpu: "StandInGpu", failing: set[str], kept: bytes, used: bytes | None, timings: bytes
) -> None:
    gpu.trt.failing = failing
    built = build_engine(gpu.libraries, source_of(gpu, EngineOptions()), kept)
    assert (gpu.trt.configs[0].timings, built.timings) == (used, timings)


def test_a_missing_graph_is_an_error(gpu: "StandInGpu") -> None:
    source = replace(source_of(gpu, EngineOptions()), graph=Path("missing.onnx"))
    with pytest.raises(GpuError, match="refuses the graph missing"):
        build_engine(gpu.libraries, source, b"")


DEVICE = DeviceFacts(gpu="Stand-in GPU", compute_capability="9.0", tensorrt="11.4.0", cuda_major=13)
OWN = "tensorrt/9.0-11.4.0/vision_model.plan"


def with_engine(package: ModelPackage, folder: Path, name: str, plan: bytes) -> ModelPackage:
    """A copy of the package with an engine."""
    shutil.copytree(package.path, folder)
    (folder / name).parent.mkdir(parents=True)
    (folder / name).write_bytes(plan)
    return write_manifest(folder, package.manifest)


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
    built = build_engine(first.libraries, source_of(first, first.options.engine), b"")
    package = with_engine(first.package, tmp_path / "package", name, built.plan)
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


def test_heads_have_engines_and_depth_and_absent_graphs_stay_in_float32(
    gpu: "StandInGpu", caplog: pytest.LogCaptureFixture
) -> None:
    files = dict(gpu.package.manifest.files)
    names = ("vision_model_fp16", "depth_model", "depth_model_fp16", "normals_model_fp16")
    files |= {f"onnx/{name}.onnx": files[VISION_FILE] for name in (*names, "normals_model")}
    manifest = gpu.package.manifest.model_copy(update={"files": files, "size_multiple": 28})
    package = ModelPackage(path=gpu.package.path, manifest=manifest)
    with caplog.at_level(logging.INFO):
        keys = keys_for(package, "fp16", device=DEVICE, options=gpu.options)
    assert [(key.part, key.precision) for key in keys] == [
        ("vision", "fp16"),
        ("text", "fp32"),
        ("depth", "fp32"),
        ("normals", "fp16"),
    ]
    assert "the text graph runs in fp32, not in fp16" in caplog.text
