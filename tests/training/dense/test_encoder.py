"""Embeddings of a package as it is served, and a shuffled package has lost what was learnt."""

from contextlib import closing
from pathlib import Path

import numpy as np
import onnx_ir
import pytest

from model.graphs import VISION_FILE
from model.package import ModelPackage
from model.preprocess import Fit, prepare_image
from training.dense.encoder import Embeddings, FrozenEncoder, shuffled

WIDE = np.random.default_rng(1).integers(0, 256, (56, 84, 3), np.uint8)


def encoded(encoder: FrozenEncoder, *size_hw: int) -> tuple[np.ndarray, np.ndarray]:
    """CLS tokens and patches by the runtime itself."""
    output = encoder.runtime.encode_images(prepare_image(WIDE, (size_hw[0], size_hw[1]))[None])
    return output.cls1_BD, output.patches_BND.reshape(1, size_hw[0] // 14, size_hw[1] // 14, -1)


@pytest.mark.parametrize(
    ("fit", "size_hw"), [("aspect", (56, 84)), ("squash", (56, 56)), (None, (56, 56))]
)
def test_an_image_is_embedded_as_it_is_served(
    tiny_package: ModelPackage, fit: Fit | None, size_hw: tuple[int, int]
) -> None:
    encoder = FrozenEncoder.load(tiny_package)
    with closing(encoder.runtime):
        found = encoder.as_served(WIDE, fit) if fit else encoder.embed([WIDE] * 9)
        cls, patches = encoded(encoder, *size_hw)
    assert len(found.cls_PD) == (1 if fit else 9)
    np.testing.assert_allclose(found.cls_PD[-1:], cls, rtol=2e-3, atol=1e-3)
    np.testing.assert_allclose(found.patches_PhwD[-1:], patches, rtol=2e-3, atol=1e-3)


def test_shuffling_keeps_the_numbers_and_loses_their_places(
    tiny_package: ModelPackage, tmp_path: Path
) -> None:
    other = shuffled(tiny_package, tmp_path / "shuffled")

    def weights(package: ModelPackage) -> dict[str, np.ndarray]:
        graph = onnx_ir.load(package.file(VISION_FILE)).graph
        values = {name: value.const_value for name, value in graph.initializers.items()}
        return {n: v.numpy() for n, v in values.items() if v is not None and v.size >= 32}

    def embedded(package: ModelPackage) -> Embeddings:
        encoder = FrozenEncoder.load(package)
        with closing(encoder.runtime):
            return encoder.embed([WIDE])

    before, after = weights(tiny_package), weights(other)
    floating = [name for name, value in before.items() if value.dtype.kind == "f"]
    assert all((np.sort(before[n], None) == np.sort(after[n], None)).all() for n in floating)
    assert sum((before[n] != after[n]).any() for n in floating) > len(floating) // 2 > 5
    ours, theirs = (embedded(package).patches_PhwD for package in (tiny_package, other))
    assert np.abs(ours - theirs).max() > 0.1
