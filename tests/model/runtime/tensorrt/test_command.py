"""Building engines ahead, as an init container does it. On stand-ins."""

import argparse
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from model.conversion.commands import run as run_model
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


def test_what_it_built_the_service_finds(gpu: "StandInGpu") -> None:
    told = "\n".join(build(gpu, *FEW))
    assert "Stand-in GPU, compute capability 9.0, TensorRT 11.4.0" in told
    assert "[1/2] vision fp32: stand-in: 50 %" in told
    assert "[2/2] text fp32: ready after" in told
    assert gpu.trt.num_built == 2
    gpu.lane()
    assert gpu.trt.num_built == 2


def test_a_second_build_has_nothing_to_do(gpu: "StandInGpu") -> None:
    build(gpu)
    build(gpu)
    assert gpu.trt.num_built == 2
    build(gpu, "--optimization-level=5")
    assert gpu.trt.num_built == 4


def test_nothing_of_the_engines_stays_on_the_gpu(gpu: "StandInGpu") -> None:
    build(gpu)
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
def test_a_failure_is_a_sentence(gpu: "StandInGpu", arguments: tuple[str, ...], told: str) -> None:
    with pytest.raises((ValueError, GpuError), match=told):
        build(gpu, *arguments)
    assert gpu.trt.num_built == 0


@pytest.fixture
def _signals_as_before() -> Iterator[None]:
    """The program takes SIGTERM for itself."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("_signals_as_before")
def test_without_the_libraries_it_names_the_extra(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert run_model(["build-engine", "bundled"]) == 1
    assert "pip install 'tipserve[gpu]'" in capsys.readouterr().err


@pytest.mark.usefixtures("_signals_as_before")
def test_options_that_are_not_known_are_errors(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run_model(["build-engine", "bundled", "--batch", "4"])
    assert "--batch" in capsys.readouterr().err
