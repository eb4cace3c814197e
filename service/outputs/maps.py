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
# Smooth maps have few runs, so Huffman coding of matches compresses better than Z_RLE.
SMOOTH: Final = zlib.Z_DEFAULT_STRATEGY


def encode_depth_png(depth_HW: NDArray[np.float32]) -> bytes:
    """Encode colours from pale yellow (the image's nearest point) to dark violet (the farthest)."""
    nearest, farthest = depth_HW.min(), depth_HW.max()
    step = (farthest - nearest) / (NUM_COLOURS - 1)
    step = step or np.float32(1)  # a constant depth counts as the nearest

    def indices(rows: slice) -> NDArray[np.uint8]:
        index_hW: NDArray[np.uint8] = np.rint((depth_HW[rows] - nearest) / step).astype(np.uint8)
        return index_hW

    table = colour_table().tobytes()
    return write_png(depth_HW.shape, indices, ColourType.PALETTE, table, strategy=SMOOTH)


def encode_millimetres_png(depth_HW: NDArray[np.float32]) -> bytes:
    """Encode whole millimetres in 16 bits; larger depths become 65535."""

    def millimetres(rows: slice) -> NDArray[np.uint16]:
        return np.rint(np.clip(depth_HW[rows], 0, FARTHEST_M) * 1000).astype(np.uint16)

    return write_png(depth_HW.shape, millimetres, ColourType.GREY, strategy=SMOOTH)


def encode_normals_png(normals_HW3: NDArray[np.float32]) -> bytes:
    """Encode each axis from -1 to 1 as red, green and blue from 0 to 255, as is usual."""

    def colours(rows: slice) -> NDArray[np.uint8]:
        scaled_hW3: NDArray[np.float32] = (np.clip(normals_HW3[rows], -1, 1) + 1) * 127.5
        return np.rint(scaled_hW3).astype(np.uint8)

    return write_png(normals_HW3.shape[:2], colours, ColourType.RGB, strategy=SMOOTH)


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
