"""CUDA and TensorRT failures become exceptions with advice."""

import gc
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from model.package import ModelPackage
from model.runtime.base import LaneShare, MissingRuntimeError
from model.runtime.choice import RuntimeChoice
from model.runtime.load import load_chosen
from model.runtime.tensorrt.cuda import GpuError, device_facts
from model.runtime.tensorrt.engines import ENGINES
from model.runtime.tensorrt.profiles import DEFAULT_CACHE_FOLDER
from model.runtime.tensorrt.runtime import usual_options
from tests.model.runtime.tensorrt.stand_in_cuda import FREEING
from tests.model.runtime.tensorrt.stand_in_tensorrt import Severity

if TYPE_CHECKING:
    from tests.model.runtime.tensorrt.conftest import MakeGpu, StandInGpu


# Messages of the libraries.


@pytest.mark.parametrize("missing", ["tensorrt", "cuda.bindings"])
def test_a_missing_library_names_the_extra(
    tiny_package: ModelPackage, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    choice = RuntimeChoice(runtime="tensorrt", precision="fp32", device="gpu", reason="a test")
    with pytest.raises(MissingRuntimeError, match=r"pip install 'tipserve\[gpu\]'"):
        load_chosen(tiny_package, choice)


def test_facts_of_the_gpu_are_read(gpu: "StandInGpu") -> None:
    gpu.cuda.properties = replace(gpu.cuda.properties, name=b"NVIDIA L4\0\0", major=8, minor=9)
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


def test_engines_are_looked_for_where_they_are_built(tmp_path: Path) -> None:
    assert usual_options(LaneShare(cache=tmp_path)).cache_folder == tmp_path / "tensorrt"
    assert usual_options(None).cache_folder == DEFAULT_CACHE_FOLDER


# Any call of CUDA or TensorRT may fail: the error says why, and nothing is left allocated.


def use_a_lane(gpu: "StandInGpu") -> None:
    """Load, run, record, replay, grow, run texts, close."""
    lane = gpu.lane()
    for batch in (1, 1, 1, 3):
        lane.encode_images(np.zeros((batch, 3, 14, 28), np.float32))
    ones_BL = np.ones((2, 3), np.int64)
    lane.encode_texts(ones_BL, ones_BL)
    gpu.close()


def error_of_use(gpu: "StandInGpu") -> str:
    """The error of using a lane; empty where there was none."""
    try:
        use_a_lane(gpu)
    except GpuError as error:
        return str(error)
    return ""


def assert_nothing_is_left(gpu: "StandInGpu", number: int) -> None:
    gpu.close()
    if gpu.trt.contexts or gpu.trt.engines:
        gc.collect()  # some tenths of a second, with all that is imported
    name = gpu.cuda.called[number]
    assert gpu.cuda.num_alive == 0, f"{name} (call {number}) left something"
    assert not gpu.trt.contexts, name
    assert not gpu.trt.engines, name
    gc.collect()  # exceptions of failed calls hold frames with the engine
    assert len(ENGINES) == 0, name


@pytest.mark.slow
def test_any_one_call_of_cuda_may_fail(make_gpu: "MakeGpu") -> None:
    whole = make_gpu()
    use_a_lane(whole)
    names = list(whole.cuda.called)
    assert {"cudaMalloc", "cudaGraphLaunch", "cudaEventSynchronize"} <= set(names)
    silent = []
    for number, name in enumerate(names):
        gpu = make_gpu()
        gpu.cuda.failing = {number: gpu.cuda.cudaError_t.cudaErrorMemoryAllocation}
        told = error_of_use(gpu)
        if told:
            assert told.startswith("the GPU could not "), told
            assert "stand-in text of error 2 (cudaErrorMemoryAllocation); the GPU's memory" in told
        else:
            silent.append(name)
        assert_nothing_is_left(gpu, number)
    # Freeing reports no error, and the lane works without a graph that cannot be recorded.
    recording = {"cudaMemcpyAsync", "cudaStreamEndCapture", "cudaGraphInstantiate", "cudaSetDevice"}
    assert set(silent) <= FREEING | recording


@pytest.mark.slow
def test_a_gpu_that_is_spoilt_for_good_leaves_nothing(make_gpu: "MakeGpu") -> None:
    whole = make_gpu()
    use_a_lane(whole)
    last = len(whole.cuda.called)
    for number in range(0, last, 3):
        gpu = make_gpu()
        gpu.cuda.spoilt_from = number
        told = error_of_use(gpu)
        assert not told or "restart the process" in told
        assert_nothing_is_left(gpu, number)


def test_a_lane_works_after_any_failed_call(make_gpu: "MakeGpu") -> None:
    gpu = make_gpu()
    lane = gpu.lane()
    pixels_B3HW = np.full((2, 3, 28, 28), 0.5, np.float32)
    before = lane.encode_images(pixels_B3HW)
    start = len(gpu.cuda.called)
    lane.encode_images(pixels_B3HW)
    num_calls = len(gpu.cuda.called) - start
    for number in range(num_calls):
        gpu.cuda.failing = {
            len(gpu.cuda.called) + number: gpu.cuda.cudaError_t.cudaErrorInvalidValue
        }
        with suppress(GpuError):
            lane.encode_images(pixels_B3HW)
        gpu.cuda.failing = {}
        after = lane.encode_images(pixels_B3HW)
        np.testing.assert_array_equal(after.patches_BND, before.patches_BND)


@pytest.mark.slow
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
    with pytest.raises(GpuError, match=f"TensorRT .*stand-in: {name} failed"):
        use_a_lane(gpu)
    assert_nothing_is_left(gpu, 0)


def test_the_error_names_the_node_that_the_parser_refuses(gpu: "StandInGpu") -> None:
    gpu.trt.failing = {"parse_from_file"}
    with pytest.raises(GpuError, match=r"Resize node_1: antialias.*choose the runtime 'onnx'"):
        gpu.lane()
    assert gpu.cuda.num_alive == 0


def test_a_kept_engine_that_is_refused_is_built_again_once(make_gpu: "MakeGpu") -> None:
    make_gpu().lane().close()
    gpu = make_gpu()
    gpu.trt.failing = {"deserialize_cuda_engine"}
    with pytest.raises(RuntimeError, match="cannot load the engine that it built"):
        gpu.lane()
    assert gpu.trt.num_built == 1


def test_smaller_batches_still_run_after_memory_ran_out(gpu: "StandInGpu") -> None:
    lane = gpu.lane()
    small_B3HW = np.zeros((1, 3, 14, 14), np.float32)
    before = lane.encode_images(small_B3HW)
    gpu.cuda.memory_bytes = 8_000
    with pytest.raises(GpuError, match="use fewer lanes or smaller batches"):
        lane.encode_images(np.zeros((4, 3, 56, 56), np.float32))
    after = lane.encode_images(small_B3HW)
    np.testing.assert_array_equal(after.patches_BND, before.patches_BND)
