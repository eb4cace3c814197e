"""Encoded pictures to pixels: header first, limits before memory, every decoder's exception caught.

Knows the file formats and nothing of models. Shape legend: H W pixels of the upright picture.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.errors import InvalidRequest, ServiceError
from service.jpeg_scans import MAX_SCANS, has_too_many_scans

FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
ORIENTATION_TAG: Final = 0x0112
UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
WHITE: Final = (255, 255, 255)

# Our own limit, below, is checked on the header of every picture; Pillow's would warn or raise
# before it.
Image.MAX_IMAGE_PIXELS = None
# Register the formats now; Pillow would do it at the first picture, in whichever thread that is.
Image.init()


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLimits:
    """Bytes of the file, and pixels as its header declares them."""

    max_bytes: int
    max_pixels: int


def read_size(data: bytes, limits: ImageLimits, *, param: str) -> tuple[int, int]:
    """Height and width from the header alone, before EXIF orientation.

    Args:
        data: An encoded picture.
        limits: Checked here, before any pixel is decoded.
        param: The field and index of the picture, for the error.

    Raises:
        InvalidRequest: Not a picture that is read here, or over a limit.
    """
    with _reporting(param), _open(data, limits, param) as image:
        return image.height, image.width


def decode_image(data: bytes, limits: ImageLimits, *, param: str) -> NDArray[np.uint8]:
    """Decode a picture to uint8 RGB [H, W, 3].

    EXIF orientation is applied, transparent parts are laid on white, 16-bit samples are reduced to
    8, and of an animation the first frame counts.

    Raises:
        InvalidRequest: Not a picture that is read here, broken, or over a limit.
    """
    with _reporting(param), _open(data, limits, param) as image:
        if has_too_many_scans(data):
            raise InvalidRequest(
                f"{param}: the JPEG picture has more than {MAX_SCANS} scans. Encode it anew.",
                code="image_too_large",
                param=param,
            )
        image.load()
        return np.asarray(_to_rgb(_turn_upright(image)))


def _open(data: bytes, limits: ImageLimits, param: str) -> Image.Image:
    if len(data) > limits.max_bytes:
        raise InvalidRequest(
            f"{param}: the picture has {len(data)} bytes; at most {limits.max_bytes} are read.",
            code="image_too_large",
            param=param,
        )
    image = Image.open(BytesIO(data), formats=FORMATS)
    if image.width * image.height > limits.max_pixels:
        raise InvalidRequest(
            f"{param}: the picture has {image.width} x {image.height} pixels; "
            f"at most {limits.max_pixels} are read. Send a smaller one.",
            code="image_too_large",
            param=param,
        )
    return image


@contextmanager
def _reporting(param: str) -> Iterator[None]:
    """Turn whatever a decoder raises into the caller's error; decoders raise nearly anything."""
    try:
        yield
    except ServiceError:
        raise
    except Exception as error:
        raise InvalidRequest(
            f"{param}: not a picture that can be read here, or broken. "
            f"Supported: {', '.join(FORMATS)}.",
            code="invalid_image",
            param=param,
        ) from error


def _turn_upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(ORIENTATION_TAG)
    except Exception:  # a broken EXIF block says nothing about the picture
        return image
    method = UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in {"I", "F"}:
        return Image.fromarray(_to_grey(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        picture = image.convert("RGBA")
        paper = Image.new("RGB", picture.size, WHITE)
        paper.paste(picture, mask=picture)
        return paper
    return image.convert("RGB")


def _to_grey(samples_HW: NDArray[np.generic]) -> NDArray[np.uint8]:
    """32-bit samples to 8 bits: integers count as 16-bit, floats as [0, 1] or else [0, 255]."""
    values_HW = np.nan_to_num(samples_HW.astype(np.float64))
    if samples_HW.dtype.kind in "iu":
        values_HW /= 257
    elif values_HW.max(initial=0) <= 1:
        values_HW *= 255
    grey_HW: NDArray[np.uint8] = values_HW.clip(0, 255).astype(np.uint8)
    return grey_HW
