"""Depth and normals to PNG files: numbers for programs, colours for people.

Shape legend: H W pixels, 3 axes of a normal.
"""

import zlib
from typing import Final

import numpy as np
from numpy.typing import NDArray

from service.dense.colour_map import NUM_COLOURS, colour_table
from service.drawing.png_file import ColourType, write_png

# The farthest that 16 bits of millimetres hold, in metres.
FARTHEST_M: Final = 65.535


def encode_millimetres_png(depth_HW: NDArray[np.float32]) -> bytes:
    """A PNG of 16 bits: whole millimetres, 65535 also for what is farther."""
    millimetres_HW = np.rint(np.clip(depth_HW, 0, FARTHEST_M) * 1000)
    return _smooth_png(millimetres_HW.astype(np.uint16)[..., None], ColourType.GREY)


def encode_depth_png(depth_HW: NDArray[np.float32]) -> bytes:
    """Colours from the image's nearest point, pale yellow, to its farthest, dark violet."""
    nearest, farthest = depth_HW.min(), depth_HW.max()
    step = (farthest - nearest) / (NUM_COLOURS - 1)
    index_HW = np.zeros(depth_HW.shape, np.uint8)
    if step > 0:  # one depth everywhere is the nearest
        index_HW = np.rint((depth_HW - nearest) / step).astype(np.uint8)
    table = colour_table()
    return _smooth_png(index_HW[..., None], ColourType.PALETTE, table.tobytes())


def encode_normals_png(normals_HW3: NDArray[np.float32]) -> bytes:
    """Each axis from -1 to 1 as red, green and blue from 0 to 255, as normals are usually shown."""
    colours_HW3 = np.rint((np.clip(normals_HW3, -1, 1) + 1) * 127.5).astype(np.uint8)
    return _smooth_png(colours_HW3, ColourType.RGB)


def _smooth_png(
    samples_HWC: NDArray[np.uint8] | NDArray[np.uint16],
    colour_type: ColourType,
    colours: bytes = b"",
) -> bytes:
    # Maps have few runs, so their bytes are told apart by how often they come.
    return write_png(samples_HWC, colour_type, colours, strategy=zlib.Z_DEFAULT_STRATEGY)
