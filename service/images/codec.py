"""Encoded images to RGB arrays, within limits."""

import ctypes
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.errors import InvalidRequest, ServiceError

# libtiff, by which Pillow reads TIFF, writes what is wrong with a file straight to standard error.
#
# There it would stand between the lines of the log, as often as a caller likes; the caller's answer
# says it already.

LIBRARY: Final = re.compile(r"/\S*/libtiff[^/\s]*\.so[.\d]*")


def silence_libtiff() -> bool:
    """Take the error handler away from the library that is loaded in this process.

    Returns:
        Whether it was found; where Pillow has it built in, it is not.
    """
    try:
        mapped = LIBRARY.search(Path("/proc/self/maps").read_text(encoding="utf-8"))
        if mapped is None:
            return False
        set_handler = ctypes.CDLL(mapped.group()).TIFFSetErrorHandler
    except (OSError, AttributeError):
        return False
    set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
    set_handler(None)
    return True


# Counts the scans of a JPEG file, each of which costs a pass over every pixel of the image.
#
# A scan may have 30 bytes, so that without a bound a file of 600 kB is minutes of work within all
# other limits. Cameras and optimizers write about ten; libtiff, too, reads 100 in its JPEG images.

MAX_SCANS: Final = 100
START: Final = b"\xff\xd8"
SCAN_MARKER: Final = 0xDA
SEQUENTIAL_FRAMES: Final = (0xC0, 0xC1)
OTHER_FRAMES: Final = frozenset(range(0xC2, 0xD0)) - {0xC4, 0xC8, 0xCC}
SEGMENTS: Final = frozenset(range(0xC0, 0xFF)) - frozenset(range(0xD0, 0xDA)) - OTHER_FRAMES
# A scan's marker and the length of its head, for one to four components. Compressed data cannot
# hold the marker; the length makes it improbable in a profile or a comment.
SCAN: Final = re.compile(rb"\xff\xda\x00[\x08\x0a\x0c\x0e]")


def has_too_many_scans(data: bytes) -> bool:
    """Whether an encoded image is a JPEG file of more scans than are read."""
    if not data.startswith(START) or _has_one_scan(data):
        return False
    return sum(1 for _ in SCAN.finditer(data)) > MAX_SCANS


def _has_one_scan(data: bytes) -> bool:
    """Whether it surely has: the first scan brings all components, and nothing can follow.

    It looks at a dozen bytes, where counting looks at all of them.
    """
    position, num_components = len(START), 0
    while position + 10 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == SCAN_MARKER:
            return data[position + 4] == num_components
        if marker not in SEGMENTS:
            return False
        if marker in SEQUENTIAL_FRAMES:
            num_components = data[position + 9]
        position += 2 + int.from_bytes(data[position + 2 : position + 4])
    return False


# Images of every colour mode to opaque ones of 8 bits.
#
# Shape legend: H W pixels.

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


# Encoded images to pixels: header first, limits before memory, every decoder's exception caught.
#
# Knows the file formats and nothing of models. Shape legend: H W pixels of the upright image.

FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
# JPEG, also with further images behind the first, as some cameras have it.
REDUCIBLE: Final = {"JPEG", "MPO"}
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
SIDEWAYS: Final = {
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
}
Box = tuple[float, float, float, float]
# Our own limit, below, is checked on the header of every image; Pillow's would warn or raise
# before it.
Image.MAX_IMAGE_PIXELS = None
# Register the formats now; Pillow would do it at the first image, in whichever thread that is.
Image.init()
silence_libtiff()


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLimits:
    """Bytes of the file, and pixels as its header declares them."""

    max_bytes: int
    max_pixels: int


def read_size(data: bytes, limits: ImageLimits, *, param: str) -> tuple[int, int]:
    """Height and width from the header alone, before EXIF orientation.

    Args:
        data: An encoded image.
        limits: Checked here, before any pixel is decoded.
        param: The field and index of the image, for the error.

    Raises:
        InvalidRequest: Not an image that is read here, or over a limit.
    """
    with _reporting(param), _open(data, limits, param) as image:
        return image.height, image.width


def upright_size(data: bytes, *, param: str) -> tuple[int, int]:
    """Height and width from the header alone, as they are once the image is upright.

    Raises:
        InvalidRequest: Not an image that is read here.
    """
    with _reporting(param), Image.open(BytesIO(data), formats=FORMATS) as image:
        size_hw = image.height, image.width
        return size_hw[::-1] if _turn(image) in SIDEWAYS else size_hw


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedImage:
    """An image in memory, as its file stores it: perhaps lying on its side, perhaps reduced.

    Attributes:
        image: Of mode RGB or L.
        box: Left, top, right and bottom of what the image covers, in pixels of `image`; a reduced
            one may end within its last pixels.
        size_hw: The image's own height and width, upright.
        turn: What makes it upright; None where it is so.
    """

    image: Image.Image
    box: Box
    size_hw: tuple[int, int]
    turn: Image.Transpose | None

    def stored_hw(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the upright image, as they are before it is turned; or back."""
        return size_hw[::-1] if self.turn in SIDEWAYS else size_hw

    def upright(self, image: Image.Image) -> Image.Image:
        """Turn this image, or one that was scaled from it."""
        return image if self.turn is None else image.transpose(self.turn)


def load_image(
    data: bytes,
    limits: ImageLimits,
    *,
    param: str,
    reduce_to: Callable[[tuple[int, int]], tuple[int, int]] | None = None,
) -> LoadedImage:
    """Decode an image.

    Transparent parts are laid on white, 16-bit samples are reduced to 8, and of an animation the
    first frame counts.

    Args:
        data: An encoded image.
        limits: Checked before any pixel is decoded.
        param: The field and index of the image, for the error.
        reduce_to: Gives for the upright height and width the least that must be left of them. A
            JPEG is then decoded at a half, a quarter or an eighth of its size, as that allows.

    Raises:
        InvalidRequest: Not an image that is read here, broken, or over a limit.
    """
    with _reporting(param), _open(data, limits, param) as image:
        _refuse_many_scans(data, param)
        if image.format not in REDUCIBLE:
            image.load()  # first, because TIFF's decoder turns the image itself
        turn = _turn(image)
        stored_hw = image.height, image.width
        loaded = LoadedImage(
            image=image, box=(0, 0, image.width, image.height), size_hw=stored_hw, turn=turn
        )
        loaded = replace(loaded, size_hw=loaded.stored_hw(stored_hw))
        if reduce_to is not None and image.format in REDUCIBLE:
            height, width = loaded.stored_hw(reduce_to(loaded.size_hw))
            # The decoder never goes below what it is asked for.
            reduced = image.draft(None, (width, height))
            if reduced is not None:
                loaded = replace(loaded, box=reduced[1])
        image.load()
        return replace(loaded, image=flatten(image))


def decode_image(data: bytes, limits: ImageLimits, *, param: str) -> NDArray[np.uint8]:
    """Decode an image as `load_image` does, to upright uint8 RGB [H, W, 3].

    Raises:
        InvalidRequest: Not an image that is read here, broken, or over a limit.
    """
    loaded = load_image(data, limits, param=param)
    return np.asarray(loaded.upright(loaded.image).convert("RGB"))


def _open(data: bytes, limits: ImageLimits, param: str) -> Image.Image:
    if len(data) > limits.max_bytes:
        raise InvalidRequest(
            f"{param}: the image has {len(data)} bytes; at most {limits.max_bytes} are read.",
            code="image_too_large",
            param=param,
        )
    image = Image.open(BytesIO(data), formats=FORMATS)
    if image.width * image.height > limits.max_pixels:
        raise InvalidRequest(
            f"{param}: the image has {image.width} x {image.height} pixels; "
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
            f"{param}: not an image that can be read here, or broken. "
            f"Supported: {', '.join(FORMATS)}.",
            code="invalid_image",
            param=param,
        ) from error


def _refuse_many_scans(data: bytes, param: str) -> None:
    if has_too_many_scans(data):
        raise InvalidRequest(
            f"{param}: the JPEG image has more than {MAX_SCANS} scans. Encode it anew.",
            code="image_too_large",
            param=param,
        )


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        orientation = image.getexif().get(ORIENTATION_TAG)
    except Exception:  # a broken EXIF block says nothing about the image
        return None
    return UPRIGHT.get(orientation) if isinstance(orientation, int) else None
