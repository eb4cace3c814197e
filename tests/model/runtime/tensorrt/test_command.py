"""Building engines ahead, as an init container does it. On stand-ins."""

import argparse
from typing import TYPE_CHECKING

import pytest

from model.runtime.tensorrt.command import add_arguments, run
from model.runtime.tensorrt.cuda import GpuError

if TYPE_CHECKING:
    from tests.model.runtime.tensorrt.conftest import StandInGpu


def build(gpu: "StandInGpu", *arguments: str) -> list[str]:
    """What was said."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    options = parser.parse_args([str(gpu.package.path), *arguments])
    said: list[str] = []
    run(options, gpu.options.cache_folder.parent, said.append, load=lambda: gpu.libraries)
    return said


FEW = ("--max-batch=4", "--best-batch=2", "--max-texts=6", "--best-texts=3")


def test_the_service_finds_the_engines_that_were_built(gpu: "StandInGpu") -> None:
    told = "\n".join(build(gpu, *FEW))
    assert "Stand-in GPU, compute capability 9.0, TensorRT 11.4.0" in told
    assert "[1/2] vision fp32: stand-in: 50 %" in told
    assert "[2/2] text fp32: ready after" in told
    assert gpu.trt.num_built == 2
    gpu.lane()
    assert gpu.trt.num_built == 2


def test_a_second_build_has_nothing_to_do_and_nothing_stays_on_the_gpu(gpu: "StandInGpu") -> None:
    for arguments, num_built in (((), 2), ((), 2), (("--optimization-level=5",), 4)):
        build(gpu, *arguments)
        assert gpu.trt.num_built == num_built
        assert not gpu.trt.engines
        assert gpu.cuda.num_alive == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--precision=bf16",), "has no file 'onnx/vision_model_bf16"),
        (("--best-batch=100",), "at most 64 images, not 100"),
        (("--device=3",), "be asked what GPU 3 is"),
    ],
)
def test_wrong_options_are_errors_before_anything_is_built(
    gpu: "StandInGpu", arguments: tuple[str, ...], told: str
) -> None:
    with pytest.raises((ValueError, GpuError), match=told):
        build(gpu, *arguments)
    assert gpu.trt.num_built == 0
