"""What the libraries say is heard: versions, errors, and that they are missing."""

import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from model.package import ModelPackage
from model.runtime.base import LaneShare, MissingRuntimeError
from model.runtime.choice import RuntimeChoice
from model.runtime.load import load_chosen
from model.runtime.tensorrt.calls import GpuError
from model.runtime.tensorrt.libraries import device_facts
from model.runtime.tensorrt.options import DEFAULT_CACHE_FOLDER
from model.runtime.tensorrt_runtime import usual_options
from tests.model.runtime.tensorrt.stand_in_tensorrt import Severity

if TYPE_CHECKING:
    from tests.model.runtime.tensorrt.conftest import StandInGpu


@pytest.mark.parametrize("missing", ["tensorrt", "cuda.bindings"])
def test_a_missing_library_names_the_extra(
    tiny_package: ModelPackage, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    choice = RuntimeChoice(runtime="tensorrt", precision="fp32", device="gpu", reason="a test")
    with pytest.raises(MissingRuntimeError, match=r"pip install 'tipserve\[gpu\]'"):
        load_chosen(tiny_package, choice)


def test_what_the_gpu_is(gpu: "StandInGpu") -> None:
    gpu.cuda.properties = replace(gpu.cuda.properties, name=b"NVIDIA L4\0\0", major=8, minor=9)
    facts = device_facts(gpu.libraries, 0)
    assert (facts.gpu, facts.compute_capability) == ("NVIDIA L4", "8.9")
    assert (facts.tensorrt, facts.cuda_major) == ("11.4.0", 13)


def test_a_driver_that_is_too_old_is_told(gpu: "StandInGpu") -> None:
    gpu.cuda.failing = {0: gpu.cuda.cudaError_t.cudaErrorInsufficientDriver}
    with pytest.raises(GpuError, match="driver is missing or too old for this CUDA: update it"):
        device_facts(gpu.libraries, 0)


def test_messages_go_to_the_log_by_their_weight(
    gpu: "StandInGpu", caplog: pytest.LogCaptureFixture
) -> None:
    logger = gpu.log.logger
    with caplog.at_level(logging.DEBUG, logger="tensorrt"):
        for severity in Severity:
            logger.log(severity, f"message of {severity.name}\n")  # noqa: G004 - TensorRT's own
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.ERROR, "message of INTERNAL_ERROR"),
        (logging.ERROR, "message of ERROR"),
        (logging.WARNING, "message of WARNING"),
        (logging.DEBUG, "message of INFO"),
    ]
    assert gpu.log.take_errors() == "message of INTERNAL_ERROR; message of ERROR"
    assert gpu.log.take_errors() == "TensorRT gave no reason"


def test_of_a_flood_of_errors_the_last_are_kept(gpu: "StandInGpu") -> None:
    for number in range(1000):
        gpu.log.logger.log(Severity.ERROR, str(number))
    assert gpu.log.take_errors().split("; ") == [str(number) for number in range(992, 1000)]


def test_engines_are_looked_for_where_they_are_built(tmp_path: Path) -> None:
    assert usual_options(LaneShare(cache=tmp_path)).cache_folder == tmp_path / "tensorrt"
    assert usual_options(None).cache_folder == DEFAULT_CACHE_FOLDER
