"""CUDA and TensorRT failures become exceptions with advice, and leave nothing allocated."""

import gc
from contextlib import suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from model.runtime.tensorrt.cuda import GpuError, device_facts
from model.runtime.tensorrt.engines import ENGINES
from tests.model.runtime.tensorrt.conftest import assert_near, images, texts
from tests.model.runtime.tensorrt.stand_in_cuda import FREEING
from tests.model.runtime.tensorrt.stand_in_tensorrt import Severity

if TYPE_CHECKING:
    from tests.model.runtime.tensorrt.conftest import MakeGpu, StandInGpu


def test_facts_of_the_gpu_are_read(gpu: "StandInGpu") -> None:
    gpu.cuda.properties = SimpleNamespace(name=b"NVIDIA L4\0\0", major=8, minor=9)
    facts = device_facts(gpu.libraries, 0)
    assert (facts.gpu, facts.compute_capability) == ("NVIDIA L4", "8.9")
    assert (facts.tensorrt, facts.cuda_major) == ("11.4.0", 13)


def test_the_last_errors_are_kept_as_reasons(gpu: "StandInGpu") -> None:
    for severity in Severity:
        gpu.log.logger.log(severity, severity.name)
    assert gpu.log.take_errors() == "INTERNAL_ERROR; ERROR"
    assert gpu.log.take_errors() == "TensorRT gave no reason"
    for number in range(1000):
        gpu.log.logger.log(Severity.ERROR, str(number))
    assert gpu.log.take_errors().split("; ") == [str(number) for number in range(992, 1000)]


def error_of_use(gpu: "StandInGpu") -> str:
    """Load a lane, run, record, replay, grow, run texts, close; returns the error or ""."""
    try:
        lane = gpu.lane()
        for batch in (1, 1, 1, 3):
            lane.encode_images(np.zeros((batch, 3, 14, 28), np.float32))
        lane.encode_texts(*texts(2, 3))
        gpu.close()
    except GpuError as error:
        return str(error)
    return ""


def assert_nothing_is_left(gpu: "StandInGpu", call: str) -> None:
    def is_left() -> bool:
        return bool(gpu.cuda.num_alive or gpu.trt.contexts or gpu.trt.engines or len(ENGINES))

    gpu.close()
    if is_left():
        gc.collect()  # exceptions of failed calls hold frames with the engine
    assert not is_left(), call


@pytest.mark.slow
@pytest.mark.parametrize("is_permanent", [False, True])
def test_any_call_of_cuda_may_fail(make_gpu: "MakeGpu", is_permanent: bool) -> None:
    whole = make_gpu()
    assert not error_of_use(whole)
    names = list(whole.cuda.called)
    assert {"cudaMalloc", "cudaGraphLaunch", "cudaEventSynchronize"} <= set(names)
    silent = set()
    for number in range(0, len(names), 3 if is_permanent else 1):
        gpu = make_gpu()
        if is_permanent:
            gpu.cuda.spoilt_from = number
        else:
            gpu.cuda.failing = {number: gpu.cuda.cudaError_t.cudaErrorMemoryAllocation}
        error = error_of_use(gpu)
        if not error:
            silent.add(names[number])
        elif is_permanent:
            assert "restart the process" in error
        else:
            assert error.startswith("the GPU could not ")
            assert "stand-in text of error 2 (cudaErrorMemoryAllocation); the GPU's mem" in error
        assert_nothing_is_left(gpu, f"{names[number]} (call {number})")
    # Freeing reports no error, and the lane works without a graph that cannot be recorded.
    recording = {"cudaMemcpyAsync", "cudaStreamEndCapture", "cudaGraphInstantiate", "cudaSetDevice"}
    assert is_permanent or silent <= FREEING | recording


def test_a_lane_works_after_any_failed_call(gpu: "StandInGpu") -> None:
    lane = gpu.lane()
    before = lane.encode_images(images(2, 28, 28))
    start = len(gpu.cuda.called)
    lane.encode_images(images(2, 28, 28))
    for number in range(len(gpu.cuda.called) - start):
        error = gpu.cuda.cudaError_t.cudaErrorInvalidValue
        gpu.cuda.failing = {len(gpu.cuda.called) + number: error}
        with suppress(GpuError):
            lane.encode_images(images(2, 28, 28))
        gpu.cuda.failing = {}
        assert_near(lane.encode_images(images(2, 28, 28)), before, atol=0)


@pytest.mark.parametrize(
    "name",
    [
        "build_serialized_network",
        "add_optimization_profile",
        "create_execution_context",
        "set_optimization_profile_async",
        "set_input_shape",
        "set_tensor_address",
        "execute_async_v3",
    ],
)
def test_any_call_of_tensorrt_may_fail(gpu: "StandInGpu", name: str) -> None:
    gpu.trt.failing = {name}
    error = error_of_use(gpu)
    assert error.startswith("TensorRT ")
    assert f"stand-in: {name} failed" in error
    assert_nothing_is_left(gpu, name)


def test_the_error_names_the_node_that_the_parser_refuses(gpu: "StandInGpu") -> None:
    gpu.trt.failing = {"parse_from_file"}
    with pytest.raises(GpuError, match=r"Resize node_1: antialias.*choose the runtime 'onnx'"):
        gpu.lane()
    assert gpu.cuda.num_alive == 0


def test_smaller_batches_still_run_after_memory_ran_out(gpu: "StandInGpu") -> None:
    lane = gpu.lane()
    before = lane.encode_images(images(1, 14, 14))
    gpu.cuda.memory_bytes = 8_000
    with pytest.raises(GpuError, match="use fewer lanes or smaller batches"):
        lane.encode_images(images(4))
    assert_near(lane.encode_images(images(1, 14, 14)), before, atol=0)
