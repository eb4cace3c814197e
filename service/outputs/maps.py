"""Depth and normal maps as PNG: exact numbers for programs, colours for people.

Shape legend: H W pixels, 3 axes of a normal.
"""

import zlib
from typing import Final

import numpy as np
from numpy.typing import NDArray

from service.outputs.colours import COLOUR_SCALE
from service.outputs.png import ColourType, write_png

# Largest depth in metres that 16 bits of millimetres hold.
FARTHEST_M: Final = 65.535
# Smooth maps have few runs, so Huffman coding of matches compresses better than Z_RLE.
SMOOTH: Final = zlib.Z_DEFAULT_STRATEGY


def encode_depth_png(depth_HW: NDArray[np.float32]) -> bytes:
    """Encode colours from pale yellow (the image's nearest point) to dark violet (the farthest)."""
    nearest, farthest = depth_HW.min(), depth_HW.max()
    step = (farthest - nearest) / (len(COLOUR_SCALE) - 1)
    step = step or np.float32(1)  # a constant depth counts as the nearest

    def indices(rows: slice) -> NDArray[np.uint8]:
        index_hW: NDArray[np.uint8] = np.rint((depth_HW[rows] - nearest) / step).astype(np.uint8)
        return index_hW

    return write_png(
        depth_HW.shape, indices, ColourType.PALETTE, COLOUR_SCALE.tobytes(), strategy=SMOOTH
    )


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
