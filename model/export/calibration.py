"""Pictures that show quantisation what a model meets.

Shapes: B batch, H W pixels, 3 colour channels (RGB).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.parity.pictures import Picture, calibration_pictures, picture_batch

Inputs = dict[str, NDArray[Any]]

SUFFIXES: Final = frozenset((".jpg", ".jpeg", ".png", ".webp"))
# Ranges hardly grow after a few dozen pictures, and each costs a pass in float32.
MAX_PICTURES: Final = 32


def calibration_images(folder: Path | None, native: int, unit: int) -> Iterator[Inputs]:
    """Pictures one by one: squares of the native size, and oblongs with half of its area.

    Args:
        folder: Of the user's pictures; None for those that come with this program.
        native: Side of the square, in pixels.
        unit: What sides must be multiples of.

    Raises:
        ValueError: The folder holds no picture.
    """
    pictures = calibration_pictures() if folder is None else read_pictures(folder)
    half = max(unit, native // 2 // unit * unit)
    shapes = [(native, native), (half, native), (native, half)]
    for index in range(len(pictures)):
        size_hw = shapes[index % len(shapes)]
        yield {"pixel_values": picture_batch(pictures, size_hw, batch=1, first=index)}


def read_pictures(folder: Path) -> tuple[Picture, ...]:
    """The first pictures of a folder by name, uint8 [H, W, 3].

    Raises:
        ValueError: There is none.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise ValueError(
            f"{folder} holds no pictures ({', '.join(sorted(SUFFIXES))}) to calibrate int8 with; "
            "name a folder that does, or none for the pictures that come with this program"
        )
    pictures = []
    for path in paths[:MAX_PICTURES]:
        with Image.open(path) as image:
            pictures.append(np.asarray(image.convert("RGB")))
    return tuple(pictures)
