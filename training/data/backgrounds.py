"""Backgrounds for scenes, procedural or photos, each with a phrase for captions."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (200, 40, 40), "orange": (230, 130, 40), "yellow": (235, 210, 70),
    "green": (60, 150, 70), "teal": (40, 150, 150), "blue": (50, 90, 200),
    "light blue": (150, 200, 240), "purple": (130, 70, 170), "pink": (235, 150, 180),
    "brown": (120, 80, 50), "beige": (225, 210, 180), "gray": (130, 130, 130),
    "white": (243, 243, 243), "black": (25, 25, 25),
}  # fmt: skip
_PLAIN = ("plain", "gradient")
_TEXTURED = ("stripes", "checker", "mottled")

# Photos of Debian's lomiri-wallpapers-16.04 under CC0 or CC-BY-4.0: file, description, split.
# The file names are the package's.
PHOTOS = (
    ("aitzgorri_by_Aitzol_Berasategi.jpg", "a mountain meadow", "train"),
    ("life_by_Aitzol_Berasategi.jpg", "a stream in the woods", "train"),
    ("picosdeeuropa_by_Aitzol_Berasategi.jpg", "rocky mountains", "train"),
    ("Picture_0B_by_freespace.jpg", "a red bowl", "train"),
    ("seeding_by_Clements_Engelhardt.jpg", "dandelions", "train"),
    ("umang_by_Abhishek_Mudgal.jpg", "a play of colours", "train"),
    ("Picture_1A_by_freespace.jpg", "an artist's brushes", "held-out"),
    ("sunset_by_Aitzol_Berasategi.jpg", "a sunset", "held-out"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Photo:
    """A background photo, uint8 [H, W, 3], and its description for captions."""

    pixels_HW3: NDArray[np.uint8]
    phrase: str


def load_photos(folder: Path, split: str) -> tuple[Photo, ...]:
    """Read the photos of one split, "train" or "held-out", at 480 pixels on the long side."""
    photos = []
    for file, phrase, its_split in PHOTOS:
        if its_split == split:
            image = Image.open(folder / file).convert("RGB")
            image.thumbnail((480, 480))
            photos.append(Photo(pixels_HW3=np.asarray(image), phrase=phrase))
    return tuple(photos)


def draw_background(
    rng: np.random.Generator, size: int, photos: Sequence[Photo], *, is_textured: bool = False
) -> tuple[NDArray[np.float32], str]:
    """Draw a background.

    Args:
        rng: Source of every choice.
        size: Side in pixels.
        photos: Half of the backgrounds are crops of these, where there are any.
        is_textured: Whether plain colours and gradients are left out.

    Returns:
        float32 [size, size, 3] in 0..255, and a phrase such as "on a plain red background".
    """
    if photos and rng.random() < 0.5:
        return _photo_crop(rng, size, photos[int(rng.integers(len(photos)))])
    names = list(COLOURS)
    first, second = rng.choice(len(names), 2, replace=False)
    patterns = _TEXTURED if is_textured else _PLAIN + _TEXTURED
    pattern = patterns[rng.integers(len(patterns))]
    weight_HW, phrase = _pattern(rng, size, pattern, (names[first], names[second]))
    jitter = rng.normal(0, 14, (2, 3))
    colours = np.array([COLOURS[names[first]], COLOURS[names[second]]]) + jitter
    mixed = colours[0] + (colours[1] - colours[0]) * weight_HW[..., None]
    return np.clip(mixed, 0, 255).astype(np.float32), phrase


def _photo_crop(
    rng: np.random.Generator, size: int, photo: Photo
) -> tuple[NDArray[np.float32], str]:
    height, width = photo.pixels_HW3.shape[:2]
    side = int(rng.integers(min(size, height, width) // 2, min(height, width) + 1))
    top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
    crop = photo.pixels_HW3[top : top + side, left : left + side]
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    resized = cv2.resize(np.ascontiguousarray(crop), (size, size), interpolation=cv2.INTER_AREA)
    return resized.astype(np.float32), f"over a photo of {photo.phrase}"


def _article(colour: str) -> str:
    return "an" if colour[0] in "aeiou" else "a"


def _pattern(
    rng: np.random.Generator, size: int, pattern: str, names: tuple[str, str]
) -> tuple[NDArray[np.float32], str]:
    """Mix weights [size, size] in 0..1 of the second colour, and the phrase."""
    ys, xs = np.mgrid[0:size, 0:size].astype(np.float32) / size
    first, second = names
    if pattern == "plain":
        return np.zeros_like(xs), f"on a plain {first} background"
    if pattern == "gradient":
        angle = rng.uniform(0, 2 * np.pi)
        weight = np.clip((xs - 0.5) * np.cos(angle) + (ys - 0.5) * np.sin(angle) + 0.5, 0, 1)
        return weight.astype(np.float32), f"on a background fading from {first} to {second}"
    if pattern == "stripes":
        weight = (xs * rng.integers(2, 8) + ys * rng.integers(0, 5)) % 1 > 0.5
        return weight.astype(
            np.float32
        ), f"on {_article(first)} {first} and {second} striped background"
    if pattern == "checker":
        count = rng.integers(3, 8)
        weight = (np.floor(xs * count) + np.floor(ys * count)) % 2
        return weight.astype(
            np.float32
        ), f"on {_article(first)} {first} and {second} checkered background"
    cells = int(rng.integers(3, 14))
    noise = rng.random((cells, cells), dtype=np.float32)
    weight = cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC)
    return np.clip(weight, 0, 1), f"on a mottled {first} and {second} background"
