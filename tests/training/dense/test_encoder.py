"""Embeddings of a package as it is served, and a shuffled package has lost what was learnt."""

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from model.package import ModelPackage
from model.preprocess import Fit, prepare_image
from training.dense.encoder import Embeddings, FrozenEncoder, shuffled

WIDE = np.random.default_rng(1).integers(0, 256, (56, 84, 3), np.uint8)


@pytest.mark.parametrize(
    ("fit", "size_hw"), [("aspect", (56, 84)), ("squash", (56, 56)), (None, (56, 56))]
)
def test_an_image_is_embedded_as_it_is_served_and_otherwise_with_shuffled_weights(
    tiny_package: ModelPackage, tmp_path: Path, fit: Fit | None, size_hw: tuple[int, int]
) -> None:
    def embed(encoder: FrozenEncoder) -> Embeddings:
        return encoder.as_served(WIDE, fit) if fit else encoder.embed([WIDE] * 9)

    encoder = FrozenEncoder.load(tiny_package)
    with closing(encoder.runtime):
        found = embed(encoder)
        output = encoder.runtime.encode_images(prepare_image(WIDE, size_hw)[None])
    patches = output.patches_BND.reshape(1, size_hw[0] // 14, size_hw[1] // 14, -1)
    assert len(found.cls_PD) == (1 if fit else 9)
    np.testing.assert_allclose(found.cls_PD[-1:], output.cls1_BD, rtol=2e-3, atol=1e-3)
    np.testing.assert_allclose(found.patches_PhwD[-1:], patches, rtol=2e-3, atol=1e-3)
    other = FrozenEncoder.load(shuffled(tiny_package, tmp_path / "shuffled"))
    with closing(other.runtime):
        assert np.abs(embed(other).patches_PhwD - found.patches_PhwD).max() > 0.1
