"""Embeddings of a package are kept, and a shuffled package has lost what was learnt."""

from contextlib import closing
from pathlib import Path

import numpy as np
import onnx_ir
import pytest

from model.graphs import VISION_FILE
from model.package import ModelPackage
from model.preprocess import Fit, prepare_image
from model.runtime.load import load_runtime
from training.dense.encoder import FrozenEncoder, shuffled

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 56, 56, 3), np.uint8)


def test_embeddings_are_those_of_the_runtime_and_computed_once(
    tiny_package: ModelPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = FrozenEncoder.load(tiny_package)
    found = encoder.cached(IMAGES, tmp_path, "a")
    wanted = encoder.runtime.encode_images(np.stack([prepare_image(i, (56, 56)) for i in IMAGES]))
    np.testing.assert_allclose(found.cls_PD, wanted.cls1_BD, rtol=2e-3, atol=1e-3)
    patches = wanted.patches_BND.reshape(3, 4, 4, -1)
    np.testing.assert_allclose(found.patches_PhwD, patches, rtol=2e-3, atol=1e-3)
    monkeypatch.setattr(FrozenEncoder, "embed", None)
    assert (encoder.cached(IMAGES, tmp_path, "a").patches_PhwD == found.patches_PhwD).all()
    with pytest.raises(TypeError):
        encoder.cached(IMAGES, tmp_path, "b")


@pytest.mark.parametrize(("fit", "grid"), [("aspect", (4, 6)), ("squash", (4, 4))])
def test_an_image_is_embedded_at_the_size_at_which_it_is_served(
    tiny_package: ModelPackage, fit: Fit, grid: tuple[int, int]
) -> None:
    encoder = FrozenEncoder.load(tiny_package)
    image_HW3 = np.random.default_rng(1).integers(0, 256, (56, 84, 3), np.uint8)
    found = encoder.as_served(image_HW3, fit).patches_PhwD
    assert found.shape[1:3] == grid
    planes = prepare_image(image_HW3, (14 * grid[0], 14 * grid[1]))
    wanted = encoder.runtime.encode_images(planes[None]).patches_BND.reshape(found.shape)
    np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=1e-3)


def test_shuffling_keeps_the_numbers_and_loses_their_places(
    tiny_package: ModelPackage, tmp_path: Path
) -> None:
    other = shuffled(tiny_package, tmp_path / "shuffled")

    def weights(package: ModelPackage) -> dict[str, np.ndarray]:
        graph = onnx_ir.load(package.file(VISION_FILE)).graph
        return {
            name: value.const_value.numpy()
            for name, value in graph.initializers.items()
            if value.const_value is not None and value.const_value.size >= 32
        }

    before, after = weights(tiny_package), weights(other)
    floating = [name for name, value in before.items() if value.dtype.kind == "f"]
    assert len(floating) > 10
    moved = 0
    for name in floating:
        assert (np.sort(before[name], None) == np.sort(after[name], None)).all()
        moved += (before[name] != after[name]).any()
    assert moved > len(floating) // 2
    pixels = np.random.default_rng(0).random((1, 3, 56, 56), np.float32)
    with closing(load_runtime(tiny_package)) as own, closing(load_runtime(other)) as random:
        ours, theirs = own.encode_images(pixels), random.encode_images(pixels)
    assert np.isfinite(theirs.patches_BND).all()
    assert np.abs(ours.patches_BND - theirs.patches_BND).max() > 0.1
