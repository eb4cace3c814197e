"""torch: weights that lanes share, threads of a lane, interruption, bf16, compiling."""

import threading
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Tipsv2Model

from model.package import ModelPackage
from model.parity.reference import reference_vision
from model.runtime.base import LaneShare, UnusableRuntimeError
from model.runtime.choice import RuntimeChoice
from model.runtime.torch_runtime import TorchRuntime

FP32 = RuntimeChoice(runtime="torch", precision="fp32", device="cpu", reason="")
BF16 = RuntimeChoice(runtime="torch", precision="bf16", device="cpu", reason="")
PIXELS = np.random.default_rng(0).random((2, 3, 56, 84), dtype=np.float32)


def test_lanes_share_one_model_until_one_is_closed(tiny_package: ModelPackage) -> None:
    first, second = (TorchRuntime(tiny_package, FP32, LaneShare(num_lanes=2)) for _ in range(2))
    assert first._model is second._model
    assert TorchRuntime(tiny_package, BF16, LaneShare())._model is not first._model
    first.close()
    assert TorchRuntime(tiny_package, FP32, LaneShare())._model is not second._model
    assert second.encode_images(PIXELS).cls1_BD.shape == (2, 32)


def test_an_interruption_ends_the_call_of_its_lane_only(tiny_package: ModelPackage) -> None:
    first, second = (TorchRuntime(tiny_package, FP32, LaneShare(num_lanes=2)) for _ in range(2))
    ended: list[BaseException] = []
    stop = threading.Event()

    def run() -> None:
        try:
            while not stop.is_set():
                second.encode_images(PIXELS)
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    for _ in range(200):
        first.interrupt()
        first.encode_images(PIXELS[:1, :, :14, :14])
    stop.set()
    thread.join()
    assert not ended


def test_threads_are_those_of_the_lane(tiny_package: ModelPackage) -> None:
    before = torch.get_num_threads()
    try:
        TorchRuntime(tiny_package, FP32, LaneShare(num_threads=2)).encode_images(PIXELS)
        assert torch.get_num_threads() == 2
        TorchRuntime(tiny_package, FP32, LaneShare(num_threads=1)).encode_images(PIXELS)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_bf16_is_close_to_float32(tiny_package: ModelPackage, tiny_model: Tipsv2Model) -> None:
    runtime = TorchRuntime(tiny_package, BF16, LaneShare())
    assert runtime.precision == "bf16"
    rounded = runtime.encode_images(PIXELS).values_BND
    assert rounded.dtype == np.float32
    difference = np.abs(rounded - reference_vision(tiny_model, PIXELS).values_BND).max()
    assert 1e-3 < difference < 0.2


@pytest.mark.slow
def test_compiled_blocks_compute_the_same(tiny_package: ModelPackage) -> None:
    # The backend that runs what was captured as it is: capturing is what could go wrong here.
    compiled: Any = TorchRuntime(tiny_package, FP32, LaneShare(), compile_with="eager")
    plain = TorchRuntime(tiny_package, FP32, LaneShare())
    for pixels_B3HW in (PIXELS, PIXELS[:1, :, :28]):
        np.testing.assert_allclose(
            compiled.encode_images(pixels_B3HW).patches_BND,
            plain.encode_images(pixels_B3HW).patches_BND,
            rtol=0,
            atol=1e-6,
        )


def test_int8_and_absent_heads_are_refused(tiny_package: ModelPackage) -> None:
    int8 = RuntimeChoice(runtime="torch", precision="int8", device="cpu", reason="")
    with pytest.raises(UnusableRuntimeError, match="computes in fp32, bf16, fp16"):
        TorchRuntime(tiny_package, int8, LaneShare())
    with pytest.raises(ValueError, match="has no head for depth"):
        TorchRuntime(tiny_package, FP32, LaneShare()).estimate("depth", PIXELS)


def test_without_a_gpu_torch_says_so(tiny_package: ModelPackage) -> None:
    if torch.cuda.is_available():
        pytest.skip("here is one")
    gpu = RuntimeChoice(runtime="torch", precision="fp32", device="gpu", reason="")
    with pytest.raises(UnusableRuntimeError, match="torch finds no GPU"):
        TorchRuntime(tiny_package, gpu, LaneShare())
