"""Depth and normal maps as PNG."""

import zlib
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from service.outputs.png import ColourType, to_linear_rgb, to_srgb, write_png

# One colour for each share from 0 to 1, so that equal steps look equally far apart.
#
# Our own path through OKLab: lightness falls evenly, the hue goes from yellow over red to violet,
# and each colour is as strong as a screen can show it, up to a bound.

NUM_COLOURS: Final = 256
LIGHTNESS: Final = (0.95, 0.22)
HUE_DEGREES: Final = (108.0, -70.0)
MAX_CHROMA: Final = 0.2
# Halvings in the search for the strongest colour: finer than 8 bits a channel can tell.
NUM_HALVINGS: Final = 20


@cache
def colour_table() -> NDArray[np.uint8]:
    """RGB [256, 3], from pale yellow for 0 to dark violet for 1."""
    lightness = np.linspace(*LIGHTNESS, NUM_COLOURS)
    hue = np.deg2rad(np.linspace(*HUE_DEGREES, NUM_COLOURS))
    weak, strong = np.zeros(NUM_COLOURS), np.full(NUM_COLOURS, MAX_CHROMA)
    for _ in range(NUM_HALVINGS):
        chroma = (weak + strong) / 2
        linear = to_linear_rgb(_lab(lightness, chroma, hue))
        can_be_shown = ((linear >= 0) & (linear <= 1)).all(axis=1)
        weak = np.where(can_be_shown, chroma, weak)
        strong = np.where(can_be_shown, strong, chroma)
    return to_srgb(to_linear_rgb(_lab(lightness, weak, hue)))


def _lab(
    lightness: NDArray[np.float64], chroma: NDArray[np.float64], hue: NDArray[np.float64]
) -> NDArray[np.float64]:
    return np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], axis=1)


# Depth and normals to PNG files: numbers for programs, colours for people.
#
# Shape legend: H W pixels, 3 axes of a normal.

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
