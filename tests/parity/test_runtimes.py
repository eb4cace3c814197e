"""The runtimes agree with each other, to the last label that is not a tie."""

from collections.abc import Iterator

import numpy as np
import pytest

from model.package import ModelPackage
from model.runtime.base import Runtime
from model.runtime.load import NEEDS_GPU, RUNTIMES, load_runtime
from model.segmentation import segment
from model.text import TextTokenizer


@pytest.fixture(scope="module")
def runtimes(tiny_package: ModelPackage) -> Iterator[list[Runtime]]:
    loaded = [
        load_runtime(tiny_package, runtime=name, precision="fp32")
        for name in sorted(RUNTIMES.keys() - NEEDS_GPU)
    ]
    yield loaded
    for runtime in loaded:
        runtime.close()


def test_they_segment_a_image_alike(runtimes: list[Runtime], tiny_package: ModelPackage) -> None:
    pixels_B3HW = np.random.default_rng(0).random((1, 3, 56, 84), dtype=np.float32)
    tokens = TextTokenizer.from_package(tiny_package).encode(["cat", "grass", "blue sky"])
    maps = []
    for runtime in runtimes:
        vision = runtime.encode_images(pixels_B3HW)
        text_KD = runtime.encode_texts(tokens.token_ids_BL, tokens.mask_BL)
        found = segment(
            vision.values_BND[0],
            text_KD,
            grid_hw=vision.grid_hw,
            size_hw=(120, 180),
            with_scores=True,
        )
        assert found.score_HW is not None
        maps.append((found.labels_HW, found.score_HW))
    (labels_HW, score_HW), *others = maps
    for other_labels_HW, other_score_HW in others:
        np.testing.assert_allclose(other_score_HW, score_HW, rtol=0, atol=1e-5)
        assert (other_labels_HW == labels_HW).mean() > 0.999
