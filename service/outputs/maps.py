"""Depth and normal maps as PNG: exact numbers for programs, colours for people.

Shape legend: H W pixels, 3 axes of a normal.
"""

import zlib
from typing import Final

import numpy as np
from numpy.typing import NDArray

from service.messages import FloatArray
from service.outputs.colours import COLOUR_SCALE, levels_between
from service.outputs.png import write_png

# Largest depth in metres that 16 bits of millimetres hold.
FARTHEST_M: Final = 65.535
# Smooth maps have few runs, so Huffman coding of matches compresses better than Z_RLE.
SMOOTH: Final = zlib.Z_DEFAULT_STRATEGY


def encode_depth_png(depth_HW: FloatArray) -> bytes:
    """Encode colours from pale yellow (the image's nearest point) to dark violet (the farthest)."""
    nearest, farthest = depth_HW.min(), depth_HW.max()
    return write_png(
        depth_HW.shape,
        lambda rows: levels_between(depth_HW[rows], nearest, farthest),
        COLOUR_SCALE.tobytes(),
        strategy=SMOOTH,
    )


def encode_millimetres_png(depth_HW: FloatArray) -> bytes:
    """Encode whole millimetres in 16 bits; larger depths become 65535."""

    def millimetres(rows: slice) -> NDArray[np.uint16]:
        return np.rint(np.clip(depth_HW[rows], 0, FARTHEST_M) * 1000).astype(np.uint16)

    return write_png(depth_HW.shape, millimetres, strategy=SMOOTH)


def encode_normals_png(normals_HW3: FloatArray) -> bytes:
    """Encode each axis from -1 to 1 as red, green and blue from 0 to 255, as is usual."""

    def colours(rows: slice) -> NDArray[np.uint8]:
        return levels_between(np.clip(normals_HW3[rows], -1, 1), -1, 1)

    return write_png(normals_HW3.shape[:2], colours, strategy=SMOOTH)
