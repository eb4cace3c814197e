"""Embeddings of a package as it is served."""

from contextlib import closing

import numpy as np
import pytest

from model.package import ModelPackage
from model.preprocess import Fit, prepare_image
from training.dense.labelled import FrozenEncoder

WIDE = np.random.default_rng(1).integers(0, 256, (56, 84, 3), np.uint8)


@pytest.mark.parametrize(
    ("fit", "size_hw"), [("aspect", (56, 84)), ("squash", (56, 56)), (None, (56, 56))]
)
def test_an_image_is_embedded_as_it_is_served(
    tiny_package: ModelPackage, fit: Fit | None, size_hw: tuple[int, int]
) -> None:
    encoder = FrozenEncoder.load(tiny_package)
    with closing(encoder.runtime):
        found = encoder.as_served(WIDE, fit) if fit else encoder.embed([WIDE] * 9)
        output = encoder.runtime.encode_images(prepare_image(WIDE, size_hw)[None])
    patches = output.patches_BND.reshape(1, size_hw[0] // 14, size_hw[1] // 14, -1)
    assert len(found.cls_PD) == (1 if fit else 9)
    np.testing.assert_allclose(found.cls_PD[-1:], output.cls1_BD, rtol=2e-3, atol=1e-3)
    np.testing.assert_allclose(found.patches_PhwD[-1:], patches, rtol=2e-3, atol=1e-3)
