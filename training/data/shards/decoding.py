"""Encoded images of a data set to tensors; images outside the limits are bad samples.

Legend: H W pixels of the upright image.
"""

import warnings
from typing import Final

import numpy as np
import torch
from torch import Tensor

from model.image_codec import ImageError, ImageLimits, decode_image
from training.data.crops import PATCH
from training.data.shards.sample import BadSample

FORMATS: Final = ("JPEG", "PNG", "WEBP")
# An image smaller than one patch shows nothing.
LIMITS: Final = ImageLimits(max_bytes=32 * 2**20, max_pixels=64_000_000, min_side=PATCH)


def decode_tensor(data: bytes, *, wanted_side: int = 0) -> Tensor:
    """Decode an image to uint8 RGB [3, H, W], as `model.image_codec.decode_image` does.

    Args:
        data: The file's content.
        wanted_side: A JPEG whose sides are at least twice as long is decoded at a half, a quarter
            or an eighth of its size, which is faster; 0 decodes at full size.

    Raises:
        BadSample: Not a supported image, broken, or outside the limits.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of damage in files that it still reads
            pixels_HW3 = decode_image(
                data,
                LIMITS,
                formats=FORMATS,
                reduce_to=(lambda _: (wanted_side, wanted_side)) if wanted_side else None,
            )
    except ImageError as error:
        raise BadSample(str(error)) from error
    # A copy: torch wants writable memory, and Pillow's is read-only.
    return torch.from_numpy(np.array(pixels_HW3)).permute(2, 0, 1)
