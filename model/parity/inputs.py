"""Images and texts that the parity gate compares on.

Real images and words judge every precision. Noise and random tokens judge float32 only, since no
quantisation is made for them.

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
from model.segmentation import upsample_bilinear
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
        mask_sizes: Height and width of each image before it was squashed; empty for noise.
    """

    pixels_B3HW: FloatArray
    mask_sizes: tuple[tuple[int, int], ...]

    @property
    def is_real(self) -> bool:
        """Whether these are images and not noise."""
        return bool(self.mask_sizes)

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
    is_real: bool


def plan_sizes(manifest: Manifest, *, is_thorough: bool) -> list[Size]:
    """Plan batch, height and width of the real inputs.

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
    return list(dict.fromkeys(sizes))


def image_inputs(manifest: Manifest, sizes: Sequence[Size]) -> list[VisionInput]:
    """The gate's images in these sizes, and noise of three unusual sizes."""
    images = gate_images()
    inputs, first = [], 0
    for batch, height, width in sizes:
        shown = [(first + item) % len(images) for item in range(batch)]
        inputs.append(
            VisionInput(
                pixels_B3HW=image_batch(images, (height, width), batch=batch, first=first),
                mask_sizes=tuple(images[index].shape[:2] for index in shown),
            )
        )
        first += batch
    unit, native = manifest.size_multiple, manifest.native_size
    long = min(native + unit, manifest.max_size)
    noisy = [(1, unit, unit), (1, unit, long), (3, _nearest(native / 2, unit), native)]
    return inputs + [VisionInput(pixels_B3HW=_noise(size), mask_sizes=()) for size in noisy]


def text_inputs(tokenizer: TextTokenizer) -> list[TextInput]:
    """Words and sentences up to the token limit, and random tokens."""
    inputs = []
    for texts in ([CLASS_NAMES[0]], CLASS_NAMES, SENTENCES):
        tokens = tokenizer.encode(texts)
        inputs.append(
            TextInput(token_ids_BL=tokens.token_ids_BL, mask_BL=tokens.mask_BL, is_real=True)
        )
    generator = np.random.default_rng(1)
    longest = tokenizer.max_tokens
    for batch, length in [(1, 1), (3, min(7, longest)), (8, longest)]:
        lengths_B = generator.integers(1, length + 1, size=batch)
        lengths_B[0] = length
        mask_BL = (np.arange(length) < lengths_B[:, None]).astype(np.int64)
        token_ids_BL = generator.integers(1, tokenizer.vocab_size, size=(batch, length)) * mask_BL
        inputs.append(TextInput(token_ids_BL=token_ids_BL, mask_BL=mask_BL, is_real=False))
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


def _noise(size: Size) -> FloatArray:
    """Smooth colours with grain on them."""
    batch, height, width = size
    generator = np.random.default_rng(height * width)
    coarse = generator.random((batch * 3, 6, 6), dtype=np.float32)
    smooth = upsample_bilinear(coarse, (height, width)).reshape(batch, 3, height, width)
    grain = generator.random(smooth.shape, dtype=np.float32)
    return (0.8 * smooth + 0.2 * grain).astype(np.float32)


def _nearest(side: float, unit: int) -> int:
    return max(1, round(side / unit)) * unit
