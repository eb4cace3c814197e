"""Inputs, and the same package on the CPU."""

import numpy as np
import pytest
from numpy.typing import NDArray

from model.graphs import Precision
from model.package import ModelPackage
from model.runtime.base import Runtime, VisionOutput
from model.runtime.choice import RuntimeChoice
from model.runtime.load import load_runtime


def tensorrt_choice(precision: Precision = "fp32") -> RuntimeChoice:
    return RuntimeChoice(runtime="tensorrt", precision=precision, device="gpu", reason="")


@pytest.fixture(scope="session")
def reference(tiny_package: ModelPackage) -> Runtime:
    """The same package on the CPU."""
    return load_runtime(tiny_package, runtime="onnx")


def images(batch: int, height: int = 56, width: int = 56) -> NDArray[np.uint8]:
    generator = np.random.default_rng(batch * height + width)
    return generator.integers(0, 256, (batch, 3, height, width), dtype=np.uint8)


def texts(batch: int, length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    generator = np.random.default_rng(batch * length)
    mask_BL = (np.arange(length) < generator.integers(1, length + 1, (batch, 1))).astype(np.int64)
    return generator.integers(1, 200, (batch, length)) * mask_BL, mask_BL


def assert_near(output: VisionOutput, expected: VisionOutput, atol: float = 1e-6) -> None:
    assert output.grid_hw == expected.grid_hw
    for name in ("cls1_BD", "cls2_BD", "patches_BND", "values_BND"):
        found, wanted = getattr(output, name), getattr(expected, name)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, wanted, rtol=0, atol=atol, err_msg=name)
