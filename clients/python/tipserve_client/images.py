"""Encodes images: paths, bytes, PIL images and arrays become bytes of a known format."""

import io
import struct
import zlib
from os import PathLike
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from tipserve_client.errors import InvalidRequest

PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
GREY, RGB = 0, 2


@runtime_checkable
class PilImage(Protocol):
    """The part of `PIL.Image.Image` that is used; Pillow is no dependency."""

    def save(self, fp: Any, format: str) -> None:
        """Write the image in a format."""


ImageInput = str | PathLike[str] | bytes | NDArray[np.uint8] | PilImage


def encode_image(image: ImageInput, param: str = "images[0]") -> bytes:
    """Encode an image in a format that the service reads.

    Args:
        image: A path; the bytes of a file; a PIL image; or an array, uint8 [H, W, 3] as RGB or
            [H, W] as grey. PIL images and arrays become PNG, which is lossless.
        param: Name of the image in errors.

    Raises:
        InvalidRequest: The type is unknown, or the file cannot be read.
    """
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | PathLike):
        try:
            return Path(image).read_bytes()
        except OSError as error:
            raise InvalidRequest(
                f"{param}: {image} cannot be read: {error.strerror}.",
                code="unreadable_file",
                param=param,
            ) from error
    if isinstance(image, np.ndarray):
        return _encode_array(image, param)
    if isinstance(image, PilImage):
        return _encode_pil(image, param)
    raise InvalidRequest(
        f"{param}: give a path, bytes, a PIL image or an array, not {type(image).__name__}.",
        code="invalid_image",
        param=param,
    )


def _encode_pil(image: PilImage, param: str) -> bytes:
    """Encode as PNG, which does not support every mode (CMYK, for example)."""
    stream = io.BytesIO()
    try:
        image.save(stream, "PNG")
    except (OSError, ValueError) as error:
        raise InvalidRequest(
            f"{param}: a PIL image is sent as PNG: {error}. Convert it to RGB, or give its file.",
            code="invalid_image",
            param=param,
        ) from error
    return stream.getvalue()


def _encode_array(pixels: NDArray[Any], param: str) -> bytes:
    """Encode as PNG at the lowest compression level, because speed matters more than size."""
    is_rgb = pixels.ndim == 3 and pixels.shape[2] == 3
    if pixels.dtype != np.uint8 or not (is_rgb or pixels.ndim == 2) or 0 in pixels.shape:
        raise InvalidRequest(
            f"{param}: give an array of uint8 [height, width, 3] or [height, width], not "
            f"{pixels.dtype} {list(pixels.shape)}.",
            code="invalid_image",
            param=param,
        )
    height, width = pixels.shape[:2]
    rows = np.zeros(
        (height, 1 + pixels[0].size), np.uint8
    )  # each row starts with its filter type, 0: none
    rows[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, RGB if is_rgb else GREY, 0, 0, 0)
    content = zlib.compress(rows.tobytes(), level=1)
    chunks = ((b"IHDR", header), (b"IDAT", content), (b"IEND", b""))
    return PNG_SIGNATURE + b"".join(_chunk(name, data) for name, data in chunks)


def _chunk(name: bytes, data: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(name + data))
    return struct.pack(">I", len(data)) + name + data + checksum
