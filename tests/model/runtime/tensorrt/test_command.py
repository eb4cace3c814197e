"""Engines are built in advance, as by an init container. On stand-ins."""

from typing import TYPE_CHECKING

import pytest

from model.runtime.base import LaneShare
from model.runtime.tensorrt.command import BuildOptions, run
from model.runtime.tensorrt.cuda import GpuError

if TYPE_CHECKING:
    from tests.model.runtime.tensorrt.conftest import StandInGpu


def build(gpu: "StandInGpu", options: BuildOptions = BuildOptions()) -> str:
    """Run the command; returns its output."""
    lines: list[str] = []
    cache = gpu.options.cache_folder.parent
    run(options, gpu.package, cache, lines.append, load=lambda: gpu.libraries)
    return "\n".join(lines)


def test_the_service_finds_the_engines_that_were_built(gpu: "StandInGpu") -> None:
    output = build(gpu)
    assert "[1/2] vision fp32: stand-in: 50 %" in output
    assert "[2/2] text fp32: ready after" in output
    gpu.lane(share=LaneShare(cache=gpu.options.cache_folder.parent))
    assert gpu.trt.num_built == 2


def test_only_missing_engines_are_built_and_nothing_stays_on_the_gpu(gpu: "StandInGpu") -> None:
    usual, thorough = BuildOptions(), BuildOptions(optimization_level=5)
    for options, num_built in ((usual, 2), (usual, 2), (thorough, 4)):
        build(gpu, options)
        assert gpu.trt.num_built == num_built
        assert not gpu.trt.engines
        assert gpu.cuda.num_alive == 0


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (BuildOptions(precision=("bf16",)), "has no file 'onnx/vision_model_bf16"),
        (BuildOptions(best_batch=100), "at most 64 images, not 100"),
        (BuildOptions(device=3), "be asked what GPU 3 is"),
    ],
)
def test_wrong_options_are_errors_before_anything_is_built(
    gpu: "StandInGpu", options: BuildOptions, complaint: str
) -> None:
    with pytest.raises((ValueError, GpuError), match=complaint):
        build(gpu, options)
    assert gpu.trt.num_built == 0
