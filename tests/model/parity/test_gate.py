"""The gate lets equal graphs through and stops the smallest wrong one."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import Tipsv2Model

from model.graphs import DenseTask, Precision
from model.package import ModelPackage
from model.parity.gate import ParityError, check_parity, reference_text, reference_vision
from model.runtime.base import Device, Runtime, VisionOutput
from model.runtime.load import load_runtime


@pytest.fixture(scope="module")
def runtime(tiny_package: ModelPackage) -> Iterator[Runtime]:
    loaded = load_runtime(tiny_package)
    yield loaded
    loaded.close()


class Altered:
    """A runtime whose text embeddings are off: the double of a wrong export."""

    name = "altered"
    precision: Precision = "fp32"
    device: Device = "cpu"
    tasks: tuple[DenseTask, ...] = ()

    def __init__(self, runtime: Runtime, offset: float) -> None:
        self._runtime = runtime
        self._offset = np.float32(offset)

    def encode_images(self, pixels_B3HW: NDArray[np.float32]) -> VisionOutput:
        return self._runtime.encode_images(pixels_B3HW)

    def encode_texts(
        self, token_ids_BL: NDArray[np.int64], mask_BL: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        embeddings_BD = self._runtime.encode_texts(token_ids_BL, mask_BL)
        embeddings_BD[-1, 0] += self._offset
        return embeddings_BD

    def estimate(self, task: DenseTask, pixels_B3HW: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._runtime.estimate(task, pixels_B3HW)

    def interrupt(self) -> None:
        self._runtime.interrupt()

    def close(self) -> None:
        self._runtime.close()


def test_equal_graphs_pass_and_their_sizes_are_told(
    tiny_model: Tipsv2Model, tiny_package: ModelPackage, runtime: Runtime
) -> None:
    vision, text = check_parity(tiny_model, runtime, tiny_package.manifest)
    assert vision.file == "onnx/vision_model.onnx"
    assert text.file == "onnx/text_model.onnx"
    for entry in (vision, text):
        limit = entry.limits.max_abs_diff
        assert limit is not None
        assert 0 <= entry.max_abs_diff < limit
        assert (entry.runtime, entry.precision) == ("onnx", "fp32")
        assert entry.min_cosine_cls is not None
        assert entry.min_cosine_cls > 0.99999
        assert len({size[0] for size in entry.sizes}) > 1
    assert vision.min_cosine_patches is not None
    assert vision.min_cosine_patches > 0.99999
    squares = {size for size in vision.sizes if size[1] == size[2]}
    assert len(squares) >= 2
    oblong = {size for size in vision.sizes if size[1] != size[2]}
    assert any((batch, width, height) in oblong for batch, height, width in oblong)


@pytest.mark.parametrize("offset", [2e-4, float("nan")])
def test_a_small_difference_in_one_row_is_stopped(
    tiny_model: Tipsv2Model, tiny_package: ModelPackage, runtime: Runtime, offset: float
) -> None:
    with pytest.raises(ParityError, match=r"text_model\.onnx on altered differs.*Nothing was"):
        check_parity(tiny_model, Altered(runtime, offset), tiny_package.manifest)


def test_another_model_is_stopped(tiny_package: ModelPackage, runtime: Runtime) -> None:
    other = Tipsv2Model.from_pretrained(tiny_package.path)
    with torch.no_grad():
        other.vision_model.embeddings.register_tokens[..., 0] += 0.01
    with pytest.raises(ParityError, match=r"vision_model\.onnx"):
        check_parity(other, runtime, tiny_package.manifest)


def test_the_reference_is_the_forward_of_transformers(tiny_model: Tipsv2Model) -> None:
    pixels_B3HW = np.full((1, 3, 28, 42), 0.25, dtype=np.float32)
    reference = reference_vision(tiny_model, pixels_B3HW)
    token_ids_BL = np.array([[5, 6]])
    with torch.no_grad():
        output = tiny_model(
            pixel_values=torch.from_numpy(pixels_B3HW),
            input_ids=torch.from_numpy(token_ids_BL),
            attention_mask=torch.ones(1, 2, dtype=torch.int64),
        )
    assert reference.grid_hw == (2, 3)
    cls1_D = reference.cls1_BD[0] / np.linalg.norm(reference.cls1_BD[0])
    np.testing.assert_allclose(cls1_D, output.image_embeds[0].numpy(), atol=1e-6)
    text_D = reference_text(tiny_model, token_ids_BL, np.ones((1, 2), dtype=np.int64))[0]
    np.testing.assert_allclose(
        text_D / np.linalg.norm(text_D), output.text_embeds[0].numpy(), atol=1e-6
    )
