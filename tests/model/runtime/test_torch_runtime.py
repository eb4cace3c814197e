"""torch: threads of a lane, bf16, and what it refuses."""

from typing import Any

import numpy as np
import pytest
import torch

from model.package import ModelPackage
from model.runtime.base import LaneShare, UnusableRuntimeError
from model.runtime.choice import RuntimeChoice
from model.runtime.torch_runtime import TorchRuntime

PIXELS = np.random.default_rng(0).random((2, 3, 56, 84), dtype=np.float32)


def load(
    package: ModelPackage, precision: Any = "fp32", device: Any = "cpu", num_threads: int = 1
) -> TorchRuntime:
    choice = RuntimeChoice(runtime="torch", precision=precision, device=device, reason="")
    return TorchRuntime(package, choice, LaneShare(num_threads=num_threads))


def test_a_call_uses_the_threads_of_its_lane(tiny_package: ModelPackage) -> None:
    for num_threads in (2, 1):
        load(tiny_package, num_threads=num_threads).encode_images(PIXELS)
        assert torch.get_num_threads() == num_threads


def test_bf16_is_close_to_float32(tiny_package: ModelPackage) -> None:
    lanes = [load(tiny_package, precision) for precision in ("fp32", "bf16")]
    exact, rounded = (lane.encode_images(PIXELS).values_BND for lane in lanes)
    assert rounded.dtype == np.float32
    assert 1e-3 < np.abs(rounded - exact).max() < 0.2


def test_int8_heads_and_an_absent_gpu_are_refused(tiny_package: ModelPackage) -> None:
    with pytest.raises(UnusableRuntimeError, match="computes in fp32, bf16, fp16"):
        load(tiny_package, "int8")
    with pytest.raises(ValueError, match="has no head for depth"):
        load(tiny_package).estimate("depth", PIXELS)
    if not torch.cuda.is_available():
        with pytest.raises(UnusableRuntimeError, match="torch finds no GPU"):
            load(tiny_package, device="gpu")
