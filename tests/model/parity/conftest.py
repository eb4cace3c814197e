"""The tiny model's reference, and a runtime whose outputs tests change."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from model.encoder import Tipsv2Encoder
from model.graphs import DenseTask
from model.package import ModelPackage
from model.parity.gate import run_reference
from model.parity.measure import Reference
from model.runtime.base import Runtime, VisionOutput
from model.runtime.load import load_runtime

FloatArray = NDArray[np.float32]
TokenArray = NDArray[np.int64]


class Altered:
    """A runtime that changes its outputs, like a wrong export."""

    name = "altered"
    takes_bytes = False

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.change_vision: Callable[[VisionOutput], VisionOutput] = lambda output: output
        self.change_text: Callable[[FloatArray], FloatArray] = lambda output: output
        self.change_mask: Callable[[TokenArray], TokenArray] = lambda mask: mask
        self.change_maps: Callable[[FloatArray], FloatArray] = lambda maps: maps

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runtime, name)

    def encode_images(self, pixels_B3HW: FloatArray) -> VisionOutput:
        output = self._runtime.encode_images(pixels_B3HW)
        return self.change_vision(replace(output, patches_BND=output.patches_BND.copy()))

    def encode_texts(self, token_ids_BL: TokenArray, mask_BL: TokenArray) -> FloatArray:
        mask_BL = self.change_mask(mask_BL)
        return self.change_text(self._runtime.encode_texts(token_ids_BL, mask_BL))

    def estimate(self, task: DenseTask, pixels_B3HW: FloatArray) -> FloatArray:
        return self.change_maps(self._runtime.estimate(task, pixels_B3HW))


@pytest.fixture(scope="module")
def runtime(tiny_package: ModelPackage) -> Iterator[Runtime]:
    loaded = load_runtime(tiny_package, runtime="onnx")
    yield loaded
    loaded.close()


@pytest.fixture(scope="package")
def reference(tiny_encoder: Tipsv2Encoder, tiny_package: ModelPackage) -> Reference:
    return run_reference(tiny_encoder, tiny_package, is_thorough=True)


@pytest.fixture
def altered(runtime: Runtime) -> Any:
    """The runtime without changes."""
    return Altered(runtime)
