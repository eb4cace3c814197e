"""Maps of features to PNG files.

Shape legend: H W pixels.
"""

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.dense.colour_map import NUM_COLOURS, colour_table
from service.drawing.png_file import ColourType, write_png
from service.masks.mask_codec import encode_mask_png
from service.view_messages import FeatureKind


def encode_view_png(features: NDArray[Any], kind: FeatureKind) -> bytes:
    """Colours as they are; a component from dark violet to pale yellow; groups as masks are."""
    if kind == "groups":
        return encode_mask_png(features)
    if kind == "colors":
        colours_HW3 = np.rint(features * 255).astype(np.uint8)
        return write_png(colours_HW3, ColourType.RGB, strategy=zlib.Z_DEFAULT_STRATEGY)
    index_HW = np.rint((1 - features) * (NUM_COLOURS - 1)).astype(np.uint8)
    table = colour_table().tobytes()
    return write_png(
        index_HW[..., None], ColourType.PALETTE, table, strategy=zlib.Z_DEFAULT_STRATEGY
    )
