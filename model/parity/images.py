"""Real images that exports are proven on, and others that quantisation is calibrated on.

The two sets share no image, so that the gate judges on images that no export has seen. Where
they come from is said in `images/README.md`.

Shapes: B batch, H W pixels, 3 colour channels (RGB).
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.preprocess import prepare_image

FOLDER = Path(__file__).parent / "images"
RgbImage = NDArray[np.uint8]


@cache
def gate_images() -> tuple[RgbImage, ...]:
    """Eight images uint8 [H, W, 3] that exports are judged on; never calibrate with them."""
    return _read(FOLDER / "gate")


@cache
def calibration_images() -> tuple[RgbImage, ...]:
    """Images uint8 [H, W, 3] that quantisation may look at, whole and by halves."""
    whole = _read(FOLDER / "calibration")
    halves = [image for pixels_HW3 in whole for image in np.array_split(pixels_HW3, 2, axis=1)]
    return (*whole, *(np.ascontiguousarray(half_HW3) for half_HW3 in halves))


def image_batch(
    images: Sequence[RgbImage], size_hw: tuple[int, int], *, batch: int, first: int = 0
) -> NDArray[np.float32]:
    """Model input of consecutive images, from the start again after the last.

    Args:
        images: uint8 [H, W, 3] of any sizes.
        size_hw: Height and width to squash them to, in pixels.
        batch: B.
        first: Index of the first of them.

    Returns:
        float32 [B, 3, H, W] in [0, 1].
    """
    chosen = [images[(first + item) % len(images)] for item in range(batch)]
    return np.stack([prepare_image(pixels_HW3, size_hw) for pixels_HW3 in chosen])


def _read(folder: Path) -> tuple[RgbImage, ...]:
    images = []
    for path in sorted(folder.glob("*.jpg")):
        with Image.open(path) as image:
            pixels_HW3 = np.asarray(image.convert("RGB"))
        pixels_HW3.setflags(write=False)
        images.append(pixels_HW3)
    if not images:
        raise FileNotFoundError(f"{folder} holds no images; install the package again, whole")
    return tuple(images)
