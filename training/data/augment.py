"""Augments sprites (colour, light, outline, shape), so that names are learnt across styles.

Legend: H W pixels of the sprite; RGB in 0..255 float32, alpha in 0..1.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

_HUE_DEGREES = 14.0  # standard deviation of the hue shift
_SATURATION = 0.3  # standard deviation of the log saturation factor
_BRIGHTNESS = 0.2  # standard deviation of the log brightness factor
_SHADING = 0.5  # probability of a raised, lit surface: the look of a 3D render
_SMOOTHING = 0.15  # probability of a median filter, which removes outlines and small detail
_WARP = 0.035  # amplitude of the smooth deformation, share of the side
_GRAY = 0.04  # probability of losing all colour


def warp_sprite(
    rng: np.random.Generator, rgba_HW4: NDArray[np.uint8], *, is_augmented: bool
) -> NDArray[np.uint8]:
    """Deform a sprite smoothly and sometimes remove its fine detail, if it is augmented."""
    is_smoothed = rng.random() < _SMOOTHING  # a number of the stream in any case
    if not is_augmented:
        return rgba_HW4
    if is_smoothed:
        kernel = int(rng.choice([3, 5]))
        rgba_HW4 = np.dstack(
            [cv2.medianBlur(np.ascontiguousarray(rgba_HW4[..., :3]), kernel), rgba_HW4[..., 3]]
        )
    if rng.random() < 0.3:  # some are not deformed
        return rgba_HW4
    side = rgba_HW4.shape[0]
    offsets = rng.normal(0, _WARP * side, (3, 3, 2)).astype(np.float32)
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


def _colour_matrix(rng: np.random.Generator) -> NDArray[np.float32]:
    """A 3x3 matrix that turns the hue about the gray axis and scales saturation and brightness."""
    angle = np.deg2rad(rng.normal(0, _HUE_DEGREES))
    scale = np.exp(rng.normal(0, _SATURATION)) if rng.random() >= _GRAY else 0.0
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    third, root = 1 / 3, np.sqrt(1 / 3)
    turn = np.full((3, 3), third * (1 - cos)) + np.eye(3) * cos
    turn += sin * root * np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])
    turn += (third - turn.sum(1, keepdims=True) / 3) * np.ones((3, 3))
    return np.asarray(turn * np.exp(rng.normal(0, _BRIGHTNESS)), np.float32)


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
    rng: np.random.Generator, rgb_HW3: NDArray[np.float32], alpha_HW: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Change a sprite's colours and light.

    Args:
        rng: Source of every choice.
        rgb_HW3: float32 in 0..255.
        alpha_HW: float32 in 0..1.

    Returns:
        float32 [H, W, 3] in 0..255.
    """
    changed: NDArray[np.floating] = rgb_HW3 @ _colour_matrix(rng).T
    if rng.random() < _SHADING:
        changed = _shade(rng, changed, alpha_HW)
    if rng.random() < 0.3:  # gamma
        changed = 255.0 * (np.clip(changed, 0, 255) / 255.0) ** np.exp(rng.normal(0, 0.25))
    return np.asarray(np.clip(changed, 0, 255), np.float32)
