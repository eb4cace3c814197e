"""What was chosen reaches the builder. On a stand-in; `test_real_builder.py` has a real one."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from model.graphs import VISION_FILE
from model.runtime.tensorrt.calls import GpuError
from model.runtime.tensorrt.engine_build import EngineSource, build_engine
from model.runtime.tensorrt.options import EngineOptions
from model.runtime.tensorrt.profiles import profiles_for

if TYPE_CHECKING:
    from tests.model.runtime.tensorrt.conftest import StandInGpu


def source_of(gpu: "StandInGpu", options: EngineOptions) -> EngineSource:
    return EngineSource(
        graph=gpu.package.file(VISION_FILE),
        profiles=profiles_for("vision", gpu.package.manifest, options),
        options=options,
    )


def test_the_usual_options(gpu: "StandInGpu") -> None:
    built = build_engine(gpu.libraries, source_of(gpu, EngineOptions()), b"")
    (config,) = gpu.trt.configs
    assert config.flags == set()  # no TF32
    assert config.workspace is None
    assert config.builder_optimization_level == 3
    assert config.hardware_compatibility_level.name == "NONE"
    assert config.max_aux_streams == 0
    assert built.timings == b"t"


def test_other_options(gpu: "StandInGpu") -> None:
    options = EngineOptions(
        workspace_bytes=1 << 28,
        optimization_level=5,
        is_hardware_compatible=True,
        allow_tf32=True,
    )
    build_engine(gpu.libraries, source_of(gpu, options), b"")
    (config,) = gpu.trt.configs
    assert {flag.name for flag in config.flags} == {"TF32"}
    assert config.workspace == 1 << 28
    assert config.builder_optimization_level == 5
    assert config.hardware_compatibility_level.name == "AMPERE_PLUS"


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


def test_without_a_timing_cache_it_builds_all_the_same(gpu: "StandInGpu") -> None:
    gpu.trt.failing = {"create_timing_cache"}
    assert build_engine(gpu.libraries, source_of(gpu, EngineOptions()), b"kept").timings == b""


def test_progress_is_told(gpu: "StandInGpu") -> None:
    told: list[str] = []
    source = source_of(gpu, EngineOptions())
    build_engine(gpu.libraries, source, b"", progress=told.append)
    assert told == ["stand-in", "stand-in: 50 %"]


def test_a_missing_graph_is_told(gpu: "StandInGpu") -> None:
    source = replace(source_of(gpu, EngineOptions()), graph=Path("missing.onnx"))
    with pytest.raises(GpuError, match="does not take the graph missing"):
        build_engine(gpu.libraries, source, b"")
