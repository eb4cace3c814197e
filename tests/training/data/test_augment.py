"""Augmentation changes colours and shapes, keeps ranges, and can be turned off."""

import numpy as np
import pytest
from numpy.typing import NDArray

from training.data.augment import NO_AUGMENT, STRONG_AUGMENT, AugmentConfig, recolour, warp_sprite
from training.data.sprites import SpriteBank


@pytest.fixture
def sprite(sprite_bank: SpriteBank) -> NDArray[np.uint8]:
    """A star."""
    return np.asarray(sprite_bank.rgba_MSS4[2])


def split(sprite: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    scaled = sprite.astype(np.float32)
    return scaled[..., :3], scaled[..., 3] / np.float32(255)


def test_no_augmentation_changes_nothing(sprite: NDArray[np.uint8]) -> None:
    rng = np.random.default_rng(0)
    rgb, alpha = split(sprite)
    assert np.array_equal(recolour(rng, rgb, alpha, NO_AUGMENT), rgb)
    assert np.array_equal(warp_sprite(rng, sprite, NO_AUGMENT), sprite)


def test_strong_augmentation_stays_in_range_and_follows_the_seed(sprite: NDArray[np.uint8]) -> None:
    rgb, alpha = split(sprite)
    changed = []
    for seed in (*range(20), 0):
        rng = np.random.default_rng(seed)
        warped = warp_sprite(rng, sprite, STRONG_AUGMENT)
        coloured = recolour(rng, rgb, alpha, STRONG_AUGMENT)
        assert (warped.dtype.name, warped.shape) == ("uint8", sprite.shape)
        assert (coloured.dtype.name, coloured.shape) == ("float32", rgb.shape)
        assert coloured.min() >= 0
        assert coloured.max() <= 255
        changed.append(coloured.tobytes())
    assert changed[0] == changed[-1]
    assert len(set(changed)) == 20


def test_warping_moves_the_outline_a_little(sprite: NDArray[np.uint8]) -> None:
    solid, config = sprite[..., 3] > 127, AugmentConfig(warp=0.035)
    warped = [warp_sprite(np.random.default_rng(seed), sprite, config) for seed in range(30)]
    moved = [((rgba[..., 3] > 127) != solid).mean() for rgba in warped]
    assert 0 < np.median(moved) < 0.2
    # Some stay exact.
    assert 3 <= moved.count(0.0) <= 18


def test_gray_stays_gray(sprite: NDArray[np.uint8]) -> None:
    rgb, alpha = split(sprite)
    turned = recolour(np.random.default_rng(0), rgb, alpha, AugmentConfig(gray=1.0))
    assert np.ptp(turned, axis=2).max() < 1e-2
    gray, config = np.full_like(rgb, 120), AugmentConfig(hue_degrees=40, saturation=0.5)
    for seed in range(10):
        turned = recolour(np.random.default_rng(seed), gray, alpha, config)
        assert np.ptp(turned, axis=2).max() < 1e-2
