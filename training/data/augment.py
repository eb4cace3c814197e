"""Augments sprites (colour, light, outline, shape), so that names are learnt across styles.

Legend: H W pixels of the sprite; RGB in 0..255 float32, alpha in 0..1.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentConfig:
    """Strength of the augmentation; 0 turns each kind off.

    Attributes:
        hue_degrees: Standard deviation of the hue shift.
        saturation: Standard deviation of the log saturation factor.
        brightness: Standard deviation of the log brightness factor.
        shading: Probability of a raised, lit surface (the look of a 3D render).
        smoothing: Probability of a median filter (removes outlines and small detail).
        warp: Amplitude of the smooth deformation, share of the side.
        gray: Probability of losing all colour.
    """

    hue_degrees: float = 0.0
    saturation: float = 0.0
    brightness: float = 0.0
    shading: float = 0.0
    smoothing: float = 0.0
    warp: float = 0.0
    gray: float = 0.0


NO_AUGMENT = AugmentConfig()
STRONG_AUGMENT = AugmentConfig(
    hue_degrees=14.0,
    saturation=0.3,
    brightness=0.2,
    shading=0.5,
    smoothing=0.15,
    warp=0.035,
    gray=0.04,
)


def warp_sprite(
    rng: np.random.Generator, rgba_HW4: NDArray[np.uint8], config: AugmentConfig
) -> NDArray[np.uint8]:
    """Deform a sprite smoothly and sometimes remove its fine detail."""
    if rng.random() < config.smoothing:
        kernel = int(rng.choice([3, 5]))
        rgba_HW4 = np.dstack(
            [cv2.medianBlur(np.ascontiguousarray(rgba_HW4[..., :3]), kernel), rgba_HW4[..., 3]]
        )
    if config.warp == 0 or rng.random() < 0.3:  # some are not deformed
        return rgba_HW4
    side = rgba_HW4.shape[0]
    offsets = rng.normal(0, config.warp * side, (3, 3, 2)).astype(np.float32)
    field = cv2.resize(offsets, (side, side), interpolation=cv2.INTER_CUBIC)
    ys, xs = np.mgrid[0:side, 0:side].astype(np.float32)
    warped_HW4 = cv2.remap(
        rgba_HW4,
        xs + field[..., 0],
        ys + field[..., 1],
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=(0, 0, 0, 0),
    )
    return np.asarray(warped_HW4, np.uint8)


def _colour_matrix(rng: np.random.Generator, config: AugmentConfig) -> NDArray[np.float32]:
    """A 3x3 matrix that turns the hue about the gray axis and scales saturation and brightness."""
    angle = np.deg2rad(rng.normal(0, config.hue_degrees))
    scale = np.exp(rng.normal(0, config.saturation)) if rng.random() >= config.gray else 0.0
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    third, root = 1 / 3, np.sqrt(1 / 3)
    turn = np.full((3, 3), third * (1 - cos)) + np.eye(3) * cos
    turn += sin * root * np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])
    turn += (third - turn.sum(1, keepdims=True) / 3) * np.ones((3, 3))
    return np.asarray(turn * np.exp(rng.normal(0, config.brightness)), np.float32)


def _shade(
    rng: np.random.Generator, rgb_HW3: NDArray[np.float32], alpha_HW: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Shade the sprite as a raised surface, with the blurred alpha as its height map."""
    side = alpha_HW.shape[0]
    height = cv2.GaussianBlur(alpha_HW, (0, 0), side * rng.uniform(0.06, 0.16))
    if rng.random() < 0.5:  # add the drawing's own tones to the height map
        height = height + rng.uniform(-0.4, 0.6) * cv2.GaussianBlur(
            rgb_HW3.mean(2) / 255.0, (0, 0), side * 0.03
        )
    slope_x, slope_y = cv2.Sobel(height, cv2.CV_32F, 1, 0), cv2.Sobel(height, cv2.CV_32F, 0, 1)
    angle = rng.normal(-np.pi / 2, 0.7)
    light = -(slope_x * np.cos(angle) + slope_y * np.sin(angle)) * side * 0.06
    shaded = rgb_HW3 * (1 + np.clip(light * -rng.uniform(0.4, 1.2), -0.55, 0.5))[..., None]
    gloss = np.clip(-light - 0.25, 0, 1) * rng.uniform(0, 160)
    return np.asarray(shaded + gloss[..., None])


def recolour(
    rng: np.random.Generator,
    rgb_HW3: NDArray[np.float32],
    alpha_HW: NDArray[np.float32],
    config: AugmentConfig,
) -> NDArray[np.float32]:
    """Change a sprite's colours and light.

    Args:
        rng: Source of every choice.
        rgb_HW3: float32 in 0..255.
        alpha_HW: float32 in 0..1.
        config: Strengths.

    Returns:
        float32 [H, W, 3] in 0..255.
    """
    if config == NO_AUGMENT:
        return rgb_HW3
    changed: NDArray[np.floating] = rgb_HW3 @ _colour_matrix(rng, config).T
    if rng.random() < config.shading:
        changed = _shade(rng, changed, alpha_HW)
    if rng.random() < 0.3:  # gamma
        changed = 255.0 * (np.clip(changed, 0, 255) / 255.0) ** np.exp(rng.normal(0, 0.25))
    return np.asarray(np.clip(changed, 0, 255), np.float32)
