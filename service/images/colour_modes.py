"""Images of every colour mode to opaque ones of 8 bits.

Shape legend: H W pixels.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

WHITE: Final = (255, 255, 255)


def flatten(image: Image.Image) -> Image.Image:
    """The same image as RGB or L; transparent parts are laid on white.

    Raises:
        ValueError: Of a mode that no file has.
    """
    if image.has_transparency_data:
        layer = image.convert("LA") if image.mode == "La" else image
        if layer.mode != "RGBA":  # to convert what is so already would be another copy
            layer = layer.convert("RGBA")
        paper = Image.new("RGB", layer.size, WHITE)
        paper.paste(layer, mask=layer)
        return paper
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in {"I", "F"}:
        return Image.fromarray(_to_grey(np.asarray(image)))
    if image.mode in {"RGB", "L"}:
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _to_grey(samples_HW: NDArray[np.generic]) -> NDArray[np.uint8]:
    """32-bit samples to 8 bits: integers count as 16-bit, floats as [0, 1] or else [0, 255]."""
    values_HW = np.nan_to_num(samples_HW.astype(np.float64))
    if samples_HW.dtype.kind in "iu":
        values_HW /= 257
    elif values_HW.max(initial=0) <= 1:
        values_HW *= 255
    grey_HW: NDArray[np.uint8] = values_HW.clip(0, 255).astype(np.uint8)
    return grey_HW
