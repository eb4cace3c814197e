"""The tiny model's reference, and a runtime whose outputs tests change."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from model.encoder import Tipsv2Encoder
from model.graphs import PATCH_OUTPUTS, DenseTask, PatchOutput, Precision
from model.package import ModelPackage
from model.parity.measure import Reference
from model.parity.reference import build_reference
from model.runtime.base import Device, Runtime, VisionOutput
from model.runtime.load import load_runtime

FloatArray = NDArray[np.float32]
TokenArray = NDArray[np.int64]


class Altered:
    """A runtime that changes its outputs, like a wrong export."""

    name = "altered"
    device: Device = "cpu"
    tasks: tuple[DenseTask, ...] = ()
    takes_bytes = False

    def __init__(self, runtime: Runtime, precision: Precision = "fp32") -> None:
        self._runtime = runtime
        self.precision = precision
        self.change_vision: Callable[[VisionOutput], VisionOutput] = lambda output: output
        self.change_text: Callable[[FloatArray], FloatArray] = lambda output: output
        self.change_mask: Callable[[TokenArray], TokenArray] = lambda mask: mask
        self.dense: dict[DenseTask, Callable[[FloatArray], FloatArray]] = {}

    def encode_images(
        self,
        pixels_B3HW: FloatArray,
        tasks: Sequence[DenseTask] = (),
        patch_outputs: Collection[PatchOutput] = PATCH_OUTPUTS,
    ) -> VisionOutput:
        assert not tasks
        output = self._runtime.encode_images(pixels_B3HW)
        copied = replace(output, patches_BND=output.patches_BND.copy())
        return self.change_vision(copied)

    def encode_texts(self, token_ids_BL: TokenArray, mask_BL: TokenArray) -> FloatArray:
        mask_BL = self.change_mask(mask_BL)
        return self.change_text(self._runtime.encode_texts(token_ids_BL, mask_BL))

    def estimate(self, task: DenseTask, pixels_B3HW: FloatArray) -> FloatArray:
        return self.dense[task](pixels_B3HW)

    def interrupt(self) -> None:
        self._runtime.interrupt()

    def release_idle_memory(self) -> None:
        self._runtime.release_idle_memory()

    def close(self) -> None:
        self._runtime.close()


@pytest.fixture(scope="module")
def runtime(tiny_package: ModelPackage) -> Iterator[Runtime]:
    loaded = load_runtime(tiny_package, runtime="onnx")
    yield loaded
    loaded.close()


@pytest.fixture(scope="package")
def reference(tiny_encoder: Tipsv2Encoder, tiny_package: ModelPackage) -> Reference:
    return build_reference(tiny_encoder, tiny_package, is_thorough=True)


@pytest.fixture
def altered(runtime: Runtime) -> Altered:
    """The runtime without changes."""
    return Altered(runtime)
