"""Depth and normal maps as PNG: exact numbers for programs, colours for people.

Shape legend: H W pixels, 3 axes of a normal.
"""

import zlib
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from service.outputs.png import ColourType, to_linear_rgb, to_srgb, write_png

# Largest depth in metres that 16 bits of millimetres hold.
FARTHEST_M: Final = 65.535
NUM_COLOURS: Final = 256
LIGHTNESS: Final = (0.95, 0.22)
HUE_DEGREES: Final = (108.0, -70.0)
MAX_CHROMA: Final = 0.2
# Bisection steps in the search for the greatest chroma: finer than 8 bits a channel.
NUM_HALVINGS: Final = 20


def encode_depth_png(depth_HW: NDArray[np.float32]) -> bytes:
    """Encode colours from pale yellow (the image's nearest point) to dark violet (the farthest)."""
    nearest, farthest = depth_HW.min(), depth_HW.max()
    step = (farthest - nearest) / (NUM_COLOURS - 1)
    index_HW = np.zeros(depth_HW.shape, np.uint8)
    if step > 0:  # a constant depth counts as the nearest
        index_HW = np.rint((depth_HW - nearest) / step).astype(np.uint8)
    table = colour_table()
    return _smooth_png(index_HW[..., None], ColourType.PALETTE, table.tobytes())


def encode_millimetres_png(depth_HW: NDArray[np.float32]) -> bytes:
    """Encode whole millimetres in 16 bits; larger depths become 65535."""
    millimetres_HW = np.rint(np.clip(depth_HW, 0, FARTHEST_M) * 1000)
    return _smooth_png(millimetres_HW.astype(np.uint16)[..., None], ColourType.GREY)


def encode_normals_png(normals_HW3: NDArray[np.float32]) -> bytes:
    """Encode each axis from -1 to 1 as red, green and blue from 0 to 255, as is usual."""
    colours_HW3 = np.rint((np.clip(normals_HW3, -1, 1) + 1) * 127.5).astype(np.uint8)
    return _smooth_png(colours_HW3, ColourType.RGB)


def _smooth_png(
    samples_HWC: NDArray[np.uint8] | NDArray[np.uint16],
    colour_type: ColourType,
    colours: bytes = b"",
) -> bytes:
    # Smooth maps have few runs, so Huffman coding of matches compresses better than Z_RLE.
    return write_png(samples_HWC, colour_type, colours, strategy=zlib.Z_DEFAULT_STRATEGY)


@cache
def colour_table() -> NDArray[np.uint8]:
    """RGB [256, 3], from pale yellow for 0 to dark violet for 1; equal steps look equally large.

    A path through OKLab: lightness falls evenly, the hue goes from yellow over red to violet. Each
    colour has the greatest chroma that sRGB can show, up to a bound.
    """
    lightness = np.linspace(*LIGHTNESS, NUM_COLOURS)
    hue = np.deg2rad(np.linspace(*HUE_DEGREES, NUM_COLOURS))
    low, high = np.zeros(NUM_COLOURS), np.full(NUM_COLOURS, MAX_CHROMA)
    for _ in range(NUM_HALVINGS):
        chroma = (low + high) / 2
        linear = to_linear_rgb(_lab(lightness, chroma, hue))
        is_in_gamut = ((linear >= 0) & (linear <= 1)).all(axis=1)
        low = np.where(is_in_gamut, chroma, low)
        high = np.where(is_in_gamut, high, chroma)
    return to_srgb(to_linear_rgb(_lab(lightness, low, hue)))


def _lab(
    lightness: NDArray[np.float64], chroma: NDArray[np.float64], hue: NDArray[np.float64]
) -> NDArray[np.float64]:
    return np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], axis=1)
