"""Images and texts that the parity gate compares on.

Shapes: B batch, H W pixels, 3 colour channels (RGB).
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.graphs import DENSE_TASKS
from model.manifest import Manifest
from model.preprocess import prepare_image

# The two sets share no image, so that the gate judges on images that no export has seen.
FOLDER = Path(__file__).parent / "images"
RgbImage = NDArray[np.uint8]
FloatArray = NDArray[np.float32]
Size = tuple[int, int, int]
# Texts: things that the images show or do not show, and sentences up to the token limit.
CLASS_NAMES = (
    "orange", "lemon", "kiwi", "burger", "sunflower", "book", "dog",
    "bird", "house", "window", "table", "bottle", "grass", "sky",
    "mountain", "tree", "sun", "flower", "water", "brush", "red",
    "blue",
)  # fmt: skip
SENTENCES = (
    "a dog",
    "two brown dogs look out of a window of a wooden house",
    "the sun sets behind dark hills",
    "many paint brushes in all colours, some of them blue and some of them pink, stand together",
    "sliced fruit: an orange, a kiwi and a lemon beside a red cabbage",
    "grass " * 80,
)
TEXTS = (CLASS_NAMES[:1], CLASS_NAMES, SENTENCES)


@cache
def gate_images() -> tuple[RgbImage, ...]:
    """Eight images, uint8 [H, W, 3], to compare exports on; never calibrate with them."""
    return _read(FOLDER / "gate")


@cache
def calibration_images() -> tuple[RgbImage, ...]:
    """Images to calibrate quantisation with, uint8 [H, W, 3], whole and in halves."""
    whole = _read(FOLDER / "calibration")
    halves = [image for pixels_HW3 in whole for image in np.array_split(pixels_HW3, 2, axis=1)]
    return (*whole, *(np.ascontiguousarray(half_HW3) for half_HW3 in halves))


def image_batch(
    images: Sequence[RgbImage], size_hw: tuple[int, int], *, batch: int, first: int = 0
) -> NDArray[np.float32]:
    """Make model input of consecutive images; the first follows the last.

    Args:
        images: uint8 [H, W, 3] of any sizes.
        size_hw: Height and width to squash them to, in pixels.
        batch: Number of images.
        first: Index of the first image.

    Returns:
        float32 [B, 3, H, W] in [0, 1].
    """
    chosen = [images[(first + item) % len(images)] for item in range(batch)]
    return np.stack([prepare_image(pixels_HW3, size_hw) for pixels_HW3 in chosen])


class VisionInput(NamedTuple):
    """A batch of images of one size: float32 RGB in [0, 1], and each image's own height and width.

    Masks have the images' own sizes.
    """

    pixels_B3HW: FloatArray
    mask_sizes: tuple[tuple[int, int], ...]


def image_inputs(manifest: Manifest, *, is_thorough: bool = False) -> list[VisionInput]:
    """The gate's images in several sizes; the thorough ones cost many times as much.

    Oblongs of both orientations reveal a position grid that tracing froze.
    """
    has_heads = not set(DENSE_TASKS).isdisjoint(manifest.outputs)
    unit = manifest.map_multiple if has_heads else manifest.size_multiple
    native = manifest.native_size
    quarter, half, long = (_nearest(native * part, unit) for part in (0.25, 0.5, 0.75))
    sizes: list[Size] = [(1, native, native), (2, half, long), (2, long, half)]
    sizes.append((8, quarter, quarter))
    if is_thorough:
        large = min(2 * native, manifest.max_size)
        wide = min(_nearest(native * 4 / 3, unit), manifest.max_size)
        sizes += [(1, large, large), (8, native, native), (8, half, half)]
        sizes += [(2, native, wide), (2, wide, native)]
    images = gate_images()
    inputs, first = [], 0
    for batch, height, width in dict.fromkeys(sizes):
        pixels_B3HW = image_batch(images, (height, width), batch=batch, first=first)
        shown = [images[(first + item) % len(images)] for item in range(batch)]
        inputs.append(VisionInput(pixels_B3HW, tuple(image.shape[:2] for image in shown)))
        first += batch
    return inputs


def _read(folder: Path) -> tuple[RgbImage, ...]:
    images = []
    for path in sorted(folder.glob("*.jpg")):
        with Image.open(path) as image:
            pixels_HW3 = np.asarray(image.convert("RGB"))
        pixels_HW3.setflags(write=False)
        images.append(pixels_HW3)
    if not images:
        raise FileNotFoundError(
            f"{folder} holds no images; the installation is incomplete, install it again"
        )
    return tuple(images)


def _nearest(side: float, unit: int) -> int:
    return max(1, round(side / unit)) * unit
