"""What the frozen trunk sees: unit vectors for trainable drawings, computed once."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from training.data.sprites import SpriteBank
from training.pretrained import trunk as trunk_module
from training.pretrained.trunk import cached_sprite_targets, reduce_width, sprite_targets


def test_reduced_features_are_centred_uncorrelated_and_half_whitened() -> None:
    generator = torch.Generator().manual_seed(0)
    features_MD = torch.randn(50, 6, generator=generator) * torch.tensor([9.0, 5, 3, 1, 0.5, 0.1])
    reduced_MT = reduce_width(features_MD + 7.0, 3)
    assert reduced_MT.shape == (50, 3)
    assert reduced_MT.mean(0).abs().max() < 1e-4
    # Each component is divided by the root of its deviation, so its square sum is that deviation.
    spread = torch.linalg.svdvals(features_MD - features_MD.mean(0))[:3]
    torch.testing.assert_close(reduced_MT.T @ reduced_MT, spread.diag(), rtol=1e-3, atol=1e-3)


def test_real_features_tell_drawings_apart(sprite_bank: SpriteBank) -> None:
    rgba_MSS4 = sprite_bank.rgba_MSS4[:5]
    trainable_M = np.asarray([True, True, False, True, True])
    targets_MT = sprite_targets(rgba_MSS4, trainable_M, 3)
    assert (targets_MT.shape, targets_MT.dtype.name) == ((5, 3), "float32")
    lengths_M = np.linalg.norm(targets_MT, axis=1)
    assert lengths_M.tolist() == pytest.approx([1, 1, 0, 1, 1], abs=1e-5)
    assert (targets_MT[0] @ targets_MT[1]) < 0.99


def test_targets_are_computed_once_for_a_bank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def compute(
        rgba_MSS4: NDArray[np.uint8], trainable_M: NDArray[np.bool_], width: int
    ) -> NDArray[np.float32]:
        calls.append(len(rgba_MSS4))
        return np.full((len(rgba_MSS4), width), len(calls), np.float32)

    monkeypatch.setattr(trunk_module, "sprite_targets", compute)
    path = tmp_path / "trunk-4.npz"
    for num_sprites, expected in ((3, 1), (3, 1), (5, 2), (5, 2)):
        sprites, trainable = np.zeros((num_sprites, 2, 2, 4), np.uint8), np.ones(num_sprites, bool)
        targets_MT = cached_sprite_targets(path, sprites, trainable, 4)
        assert targets_MT.shape == (num_sprites, 4)
        assert (targets_MT == expected).all()
    assert calls == [3, 5]
    assert [file.name for file in tmp_path.iterdir()] == ["trunk-4.npz"]
