"""Images to calibrate quantisation with.

Shapes: B batch, H W pixels, 3 colour channels (RGB).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray

from model.image_codec import ImageError, ImageLimits, decode_image
from model.parity.inputs import RgbImage, calibration_images, image_batch

Inputs = dict[str, NDArray[Any]]

SUFFIXES: Final = frozenset((".jpg", ".jpeg", ".png", ".webp"))
# Ranges hardly grow after a few dozen images, and each costs a pass in float32.
MAX_IMAGES: Final = 32
# High, since these are the user's own files.
LIMITS: Final = ImageLimits(max_bytes=2**28, max_pixels=2**28)


def calibration_inputs(folder: Path | None, native: int, unit: int) -> Iterator[Inputs]:
    """Yield images one by one: squares of the native size, and oblongs with half of its area.

    Args:
        folder: The user's images; None for the built-in ones.
        native: Side of the square in pixels.
        unit: Sides are multiples of it.

    Raises:
        ValueError: The folder has no image.
    """
    images = calibration_images() if folder is None else read_images(folder)
    half = max(unit, native // 2 // unit * unit)
    shapes = [(native, native), (half, native), (native, half)]
    for index in range(len(images)):
        size_hw = shapes[index % len(shapes)]
        yield {"pixel_values": image_batch(images, size_hw, batch=1, first=index)}


def read_images(folder: Path) -> tuple[RgbImage, ...]:
    """The first images of a folder by name, uint8 [H, W, 3].

    Raises:
        ValueError: The folder has no image, or one cannot be decoded.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise ValueError(
            f"{folder} holds no images ({', '.join(sorted(SUFFIXES))}) to calibrate int8 with; "
            "name a folder that does, or none for the images that come with this program"
        )
    images = []
    for path in paths[:MAX_IMAGES]:
        try:
            images.append(decode_image(path.read_bytes(), LIMITS))
        except ImageError as error:
            raise ValueError(f"{path}: {error}") from error
    return tuple(images)
