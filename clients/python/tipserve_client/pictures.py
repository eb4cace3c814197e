"""Pictures as callers have them, to encoded bytes: paths, bytes, PIL pictures, arrays."""

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
class PilPicture(Protocol):
    """What is used of a `PIL.Image.Image`; Pillow itself is not needed."""

    def save(self, fp: Any, format: str) -> None:
        """Write it in a format."""


Picture = str | PathLike[str] | bytes | NDArray[np.uint8] | PilPicture


def encode_picture(picture: Picture, param: str = "images[0]") -> bytes:
    """An encoded picture, of a format that the service reads.

    Args:
        picture: A path; the bytes of a file; a PIL picture; or an array, uint8 [H, W, 3] as RGB or
            [H, W] as grey. PIL pictures and arrays are sent as PNG, without loss.
        param: Where it is, for the error.

    Raises:
        InvalidRequest: It is none of these, or its file cannot be read.
    """
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, str | PathLike):
        try:
            return Path(picture).read_bytes()
        except OSError as error:
            raise InvalidRequest(
                f"{param}: {picture} cannot be read: {error.strerror}.",
                code="unreadable_file",
                param=param,
            ) from error
    if isinstance(picture, np.ndarray):
        return _encode_array(picture, param)
    if isinstance(picture, PilPicture):
        return _encode_pil(picture, param)
    raise InvalidRequest(
        f"{param}: give a path, bytes, a PIL picture or an array, not {type(picture).__name__}.",
        code="invalid_picture",
        param=param,
    )


def _encode_pil(picture: PilPicture, param: str) -> bytes:
    """As PNG, which has no CMYK, for one."""
    stream = io.BytesIO()
    try:
        picture.save(stream, "PNG")
    except (OSError, ValueError) as error:
        raise InvalidRequest(
            f"{param}: a PIL picture is sent as PNG: {error}. Convert it to RGB, or give its file.",
            code="invalid_picture",
            param=param,
        ) from error
    return stream.getvalue()


def _encode_array(pixels: NDArray[Any], param: str) -> bytes:
    """As PNG, compressed lightly: the pixels are soon thrown away."""
    is_rgb = pixels.ndim == 3 and pixels.shape[2] == 3
    if pixels.dtype != np.uint8 or not (is_rgb or pixels.ndim == 2) or 0 in pixels.shape:
        raise InvalidRequest(
            f"{param}: an array is uint8 [height, width, 3] or [height, width], not "
            f"{pixels.dtype} {list(pixels.shape)}.",
            code="invalid_picture",
            param=param,
        )
    height, width = pixels.shape[:2]
    rows = np.zeros((height, 1 + pixels[0].size), np.uint8)  # each begins with its filter: none
    rows[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, RGB if is_rgb else GREY, 0, 0, 0)
    content = zlib.compress(rows.tobytes(), level=1)
    chunks = ((b"IHDR", header), (b"IDAT", content), (b"IEND", b""))
    return PNG_SIGNATURE + b"".join(_chunk(name, data) for name, data in chunks)


def _chunk(name: bytes, data: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(name + data))
    return struct.pack(">I", len(data)) + name + data + checksum
