"""Exported graphs on each runtime against transformers in torch, and a batch against its items."""

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from model.encoder import Tipsv2Encoder
from model.package import ModelPackage
from model.parity.reference import reference_text, reference_vision
from model.runtime import graph_runtime
from model.runtime.base import Runtime, VisionOutput
from model.runtime.load import NEEDS_GPU, RUNTIMES, load_runtime
from model.segmentation import l2_normalize
from model.text import TokenBatch

FloatArray = NDArray[np.float32]
MAX_ABS_DIFF = 1e-4
MIN_COSINE = 0.9999


@pytest.fixture(scope="module", params=sorted(RUNTIMES.keys() - NEEDS_GPU))
def runtime(request: pytest.FixtureRequest, tiny_package: ModelPackage) -> Iterator[Runtime]:
    loaded = load_runtime(tiny_package, runtime=request.param, precision="fp32")
    yield loaded
    loaded.close()


def outputs(vision: VisionOutput) -> list[FloatArray]:
    return [vision.cls1_BD, vision.cls2_BD, vision.patches_BND, vision.values_BND]


def noise(*shape: int) -> FloatArray:
    return np.random.default_rng(0).random(shape, dtype=np.float32)


@pytest.mark.parametrize(
    ("batch", "height", "width"),
    [(5, 56, 56), (1, 14, 14), (3, 28, 84), (3, 84, 28), (1, 112, 224), (2, 154, 112)],
)
def test_images_are_as_in_torch(
    runtime: Runtime, tiny_encoder: Tipsv2Encoder, batch: int, height: int, width: int
) -> None:
    pixels_B3HW = noise(batch, 3, height, width)
    exported = runtime.encode_images(pixels_B3HW)
    reference = reference_vision(tiny_encoder.reference, [pixels_B3HW], patch_size=14)
    assert exported.grid_hw == reference.grid_hw
    for ours, theirs in zip(outputs(exported), outputs(reference), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=MAX_ABS_DIFF)


@pytest.mark.parametrize("lengths", [[1], [64], [3, 3], [1, 17, 64, 5]])
def test_texts_are_as_in_torch(
    runtime: Runtime, tiny_encoder: Tipsv2Encoder, lengths: list[int]
) -> None:
    mask_BL = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    token_ids_BL = np.random.default_rng(0).integers(1, 200, mask_BL.shape) * mask_BL
    np.testing.assert_allclose(
        runtime.encode_texts(token_ids_BL, mask_BL),
        reference_text(
            tiny_encoder.reference, TokenBatch(token_ids_BL=token_ids_BL, mask_BL=mask_BL)
        ),
        rtol=0,
        atol=MAX_ABS_DIFF,
    )


def test_a_batch_equals_its_items(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    # Large batches are cut into parts.
    monkeypatch.setattr(graph_runtime, "PIXELS_AT_ONCE", 2 * 42 * 70)
    monkeypatch.setattr(graph_runtime, "TOKENS_AT_ONCE", 13)
    pixels_B3HW = noise(5, 3, 42, 70)
    together = outputs(runtime.encode_images(pixels_B3HW))
    lengths = [2, 9, 5, 1, 4]
    mask_BL = (np.arange(9) < np.array(lengths)[:, None]).astype(np.int64)
    token_ids_BL = np.random.default_rng(0).integers(1, 200, mask_BL.shape) * mask_BL
    texts_BD = runtime.encode_texts(token_ids_BL, mask_BL)
    for index, length in enumerate(lengths):
        part = slice(index, index + 1)
        alone = outputs(runtime.encode_images(pixels_B3HW[part]))
        for batch, single in zip(together, alone, strict=True):
            cosine = (l2_normalize(batch[index]) * l2_normalize(single[0])).sum(axis=-1)
            assert cosine.min() > MIN_COSINE
            np.testing.assert_allclose(batch[index], single[0], rtol=0, atol=1e-5)
        text_BD = runtime.encode_texts(token_ids_BL[part, :length], mask_BL[part, :length])
        np.testing.assert_allclose(texts_BD[part], text_BD, rtol=0, atol=1e-5)
