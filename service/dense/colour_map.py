"""One colour for each share from 0 to 1, so that equal steps look equally far apart.

Our own path through OKLab: lightness falls evenly, the hue goes from yellow over red to violet, and
each colour is as strong as a screen can show it, up to a bound.
"""

from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from service.drawing.oklab import to_linear_rgb, to_srgb

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
