"""Encoded images to pixels, within limits that are checked before any pixel is decoded.

Legend: H W pixels of the upright image.
"""

import warnings
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from training.data.crops import PATCH
from training.data.shards.sample import BadSample

_FORMATS = ("JPEG", "PNG", "WEBP")
_WHITE = (255, 255, 255)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLimits:
    """Images outside of these are left out, and counted.

    Attributes:
        max_bytes: Of the file.
        max_pixels: As the header declares them; below the number at which Pillow itself warns.
        min_side: Of the shorter side, in pixels; one patch, below which there is nothing to see.
    """

    max_bytes: int = 32 * 2**20
    max_pixels: int = 64_000_000
    min_side: int = PATCH

    def __post_init__(self) -> None:
        """Check that some image can pass."""
        if self.max_bytes < 1 or self.min_side < 1 or self.max_pixels < self.min_side**2:
            raise ValueError("limits: max_bytes, min_side and max_pixels must let an image pass")


def decode_image(data: bytes, limits: ImageLimits, *, wanted_side: int = 0) -> Tensor:
    """Decode an image to uint8 RGB [3, H, W].

    EXIF orientation is applied, transparent parts are laid on white, 16-bit samples are reduced to
    8, and of an animation the first frame counts.

    Args:
        data: The file's content.
        limits: What is refused.
        wanted_side: A JPEG whose sides are twice as long or more is decoded at a half, a quarter
            or an eighth, which is faster; 0 decodes at full size.

    Raises:
        BadSample: Not an image that is read here, broken, or outside the limits.
    """
    if len(data) > limits.max_bytes:
        raise BadSample(f"the image has {len(data)} bytes, more than {limits.max_bytes}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the limits say what is too large or too broken
            pixels_HW3 = np.array(_open(data, limits, wanted_side))
    except BadSample:
        raise
    except Exception as error:  # decoders raise nearly anything
        raise BadSample(f"the image cannot be decoded: {error}") from error
    return torch.from_numpy(pixels_HW3).permute(2, 0, 1)


def _open(data: bytes, limits: ImageLimits, wanted_side: int) -> Image.Image:
    image: Image.Image = Image.open(BytesIO(data), formats=_FORMATS)
    width, height = image.size
    if width * height > limits.max_pixels:
        raise BadSample(f"the image has {width} x {height} pixels, over {limits.max_pixels}")
    if min(width, height) < limits.min_side:
        raise BadSample(f"the image has {width} x {height} pixels, a side under {limits.min_side}")
    if wanted_side:
        image.draft(None, (wanted_side, wanted_side))
    image.load()
    return _to_rgb(ImageOps.exif_transpose(image))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in {"I", "F"}:
        raise BadSample("images of 32-bit samples are not read")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        paper = Image.new("RGB", layer.size, _WHITE)
        paper.paste(layer, mask=layer)
        return paper
    return image.convert("RGB")
