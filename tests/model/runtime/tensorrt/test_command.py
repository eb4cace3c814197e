"""Building engines ahead, as an init container does it. On stand-ins."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from model.runtime.tensorrt.command import add_arguments, run

if TYPE_CHECKING:
    from tests.model.runtime.tensorrt.conftest import StandInGpu


def build(gpu: "StandInGpu", *arguments: str) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    options = parser.parse_args(
        [str(gpu.package.path), f"--engine-cache={gpu.options.cache_folder}", *arguments]
    )
    return run(options, load=lambda: gpu.libraries)


FEW = ("--max-batch=4", "--best-batch=2", "--max-texts=6", "--best-texts=3")


def test_what_it_built_the_service_finds(
    gpu: "StandInGpu", capsys: pytest.CaptureFixture[str]
) -> None:
    assert build(gpu, *FEW) == 0
    told = capsys.readouterr().out
    assert "Stand-in GPU, compute capability 9.0, TensorRT 11.4.0" in told
    assert "[1/2] vision fp32: stand-in: 50 %" in told
    assert "[2/2] text fp32: ready after" in told
    assert gpu.trt.num_built == 2
    gpu.lane()
    assert gpu.trt.num_built == 2


def test_a_second_build_has_nothing_to_do(gpu: "StandInGpu") -> None:
    assert [build(gpu), build(gpu)] == [0, 0]
    assert gpu.trt.num_built == 2
    assert build(gpu, "--optimization-level=5") == 0
    assert gpu.trt.num_built == 4


def test_nothing_of_the_engines_stays_on_the_gpu(gpu: "StandInGpu") -> None:
    build(gpu)
    assert not gpu.trt.engines
    assert gpu.cuda.num_alive == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--precision=bf16",), "has no file 'onnx/vision_model_bf16.onnx'"),
        (("--best-batch=100",), "at most 64 pictures, not 100"),
        (("--device=3",), "be asked what GPU 3 is"),
    ],
)
def test_a_failure_is_a_sentence_and_an_exit_status(
    gpu: "StandInGpu",
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    told: str,
) -> None:
    assert build(gpu, *arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert told in error
    assert gpu.trt.num_built == 0


def test_without_the_libraries_it_names_the_extra(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert run(parser.parse_args([str(tmp_path)])) == 1
    assert "pip install 'tipserve[gpu]'" in capsys.readouterr().err
