"""Augmentation changes colours and shapes, keeps ranges, and does nothing when told so."""

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
        changed.append(coloured)
    assert np.array_equal(changed[0], changed[-1])
    assert len({image.tobytes() for image in changed[:-1]}) == 20


def test_warping_moves_the_outline_a_little(sprite: NDArray[np.uint8]) -> None:
    config = AugmentConfig(warp=0.035)
    moved = [
        ((warp_sprite(np.random.default_rng(seed), sprite, config)[..., 3] > 127)
         != (sprite[..., 3] > 127)).mean()
        for seed in range(30)
    ]  # fmt: skip
    assert 0 < np.median(moved) < 0.2
    # Some stay exact.
    assert 3 <= moved.count(0.0) <= 18


def test_gray_stays_gray(sprite: NDArray[np.uint8]) -> None:
    rgb, alpha = split(sprite)
    gray = recolour(np.random.default_rng(0), rgb, alpha, AugmentConfig(gray=1.0))
    assert np.ptp(gray, axis=2).max() < 1e-2
    gray = np.full((8, 8, 3), 120, np.float32)
    alpha = np.ones((8, 8), np.float32)
    for seed in range(10):
        turned = recolour(
            np.random.default_rng(seed), gray, alpha, AugmentConfig(hue_degrees=40, saturation=0.5)
        )
        assert np.ptp(turned, axis=2).max() < 1e-2
