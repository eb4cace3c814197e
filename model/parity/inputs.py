"""Images and texts that the parity gate compares on.

Shapes: B batch, L tokens, H W pixels, 3 colour channels (RGB).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.graphs import DENSE_TASKS
from model.manifest import Manifest
from model.preprocess import prepare_image
from model.text import TextTokenizer

# The two sets share no image, so that the gate judges on images that no export has seen.
FOLDER = Path(__file__).parent / "images"
RgbImage = NDArray[np.uint8]
FloatArray = NDArray[np.float32]
TokenArray = NDArray[np.int64]
Size = tuple[int, int, int]
# Things that the images show, and things that they do not show.
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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VisionInput:
    """A batch of images of one size.

    Attributes:
        pixels_B3HW: float32 RGB in [0, 1].
        mask_sizes: Height and width of each image before it was squashed.
    """

    pixels_B3HW: FloatArray
    mask_sizes: tuple[tuple[int, int], ...]

    @property
    def size(self) -> Size:
        """Batch, height and width."""
        batch, _, height, width = self.pixels_B3HW.shape
        return batch, height, width


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TextInput:
    """A batch of texts, padded to the longest."""

    token_ids_BL: TokenArray
    mask_BL: TokenArray


def tokenized(tokenizer: TextTokenizer, texts: Sequence[str]) -> TextInput:
    """A batch of these texts."""
    tokens = tokenizer.encode(texts)
    return TextInput(token_ids_BL=tokens.token_ids_BL, mask_BL=tokens.mask_BL)


def image_inputs(manifest: Manifest, *, is_thorough: bool = False) -> list[VisionInput]:
    """The gate's images in several sizes.

    Every model runs its native square, oblongs of both orientations (which reveal a position grid
    that tracing froze) and a batch of eight different images. The further sizes cost many times as
    much with a large model.
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
        shown = [(first + item) % len(images) for item in range(batch)]
        inputs.append(
            VisionInput(
                pixels_B3HW=image_batch(images, (height, width), batch=batch, first=first),
                mask_sizes=tuple(images[index].shape[:2] for index in shown),
            )
        )
        first += batch
    return inputs


def text_inputs(tokenizer: TextTokenizer) -> list[TextInput]:
    """Words and sentences up to the token limit."""
    return [tokenized(tokenizer, texts) for texts in (CLASS_NAMES[:1], CLASS_NAMES, SENTENCES)]


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
