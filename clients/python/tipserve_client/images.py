"""Encodes images: paths, bytes, PIL images, arrays and tensors become bytes of a known format."""

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


@runtime_checkable
class Tensor(Protocol):
    """What NumPy can read, such as a tensor of torch, which is no dependency either."""

    def __array__(self) -> Any:
        """The elements."""


ImageInput = str | PathLike[str] | bytes | NDArray[Any] | PilImage | Tensor


def encode_image(image: ImageInput, param: str = "images[0]") -> bytes:
    """Encode an image in a format that the service reads.

    Args:
        image: A path; the bytes of a file; a PIL image; or an array or tensor: [H, W, 3] or
            [3, H, W] as RGB, [H, W] as grey; uint8, or floats from 0 to 1, which are rounded to
            8 bits. PIL images and arrays become PNG, which is lossless.
        param: Name of the image in errors.

    Raises:
        InvalidRequest: The type is unknown, the file cannot be read, or an array may mean several
            images.
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
    if isinstance(image, Tensor):
        return _encode_array(_read_tensor(image, param), param)
    raise _invalid(
        param, f"give a path, bytes, a PIL image, an array or a tensor, not {type(image).__name__}."
    )


def _invalid(param: str, reason: str) -> InvalidRequest:
    return InvalidRequest(f"{param}: {reason}", code="invalid_image", param=param)


def _encode_pil(image: PilImage, param: str) -> bytes:
    """Encode as PNG, which does not support every mode (CMYK, for example)."""
    stream = io.BytesIO()
    try:
        image.save(stream, "PNG")
    except (OSError, ValueError) as error:
        reason = f"a PIL image is sent as PNG: {error}. Convert it to RGB, or give its file."
        raise _invalid(param, reason) from error
    return stream.getvalue()


def _read_tensor(tensor: Any, param: str) -> NDArray[Any]:
    """The elements of a tensor, also of one that has a gradient or is on a GPU."""
    try:
        return np.asarray(tensor.detach().cpu() if hasattr(tensor, "detach") else tensor)
    except (TypeError, RuntimeError) as error:
        raise _invalid(param, f"NumPy cannot read this tensor: {error}") from error


def to_pixels(array: NDArray[Any], param: str) -> NDArray[np.uint8]:
    """Convert an array to uint8 [H, W, 3] or [H, W].

    Raises:
        InvalidRequest: It is no image, or may mean several.
    """
    is_last, is_first = (array.ndim == 3 and array.shape[axis] == 3 for axis in (2, 0))
    is_float = np.issubdtype(array.dtype, np.floating)
    has_layout = (is_last or is_first or array.ndim == 2) and 0 not in array.shape
    if not has_layout or not (is_float or array.dtype == np.uint8):
        raise _invalid(
            param,
            "give an array [height, width, 3], [3, height, width] or [height, width] of uint8, or "
            f"of floats from 0 to 1, not {array.dtype} {list(array.shape)}.",
        )
    if is_last and is_first:
        raise _invalid(
            param, f"the colours of an array {list(array.shape)} may be first or last; give a file."
        )
    array = np.moveaxis(array, 0, 2) if is_first else array
    if not is_float:
        return array
    if not (array.min() >= 0 and array.max() <= 1):  # also of NaN
        raise _invalid(
            param,
            f"floats must be from 0 to 1, not from {array.min():.4g} to {array.max():.4g}. Divide "
            "by 255, or undo the normalization.",
        )
    return np.rint(array.astype(np.float32) * 255).astype(np.uint8)


def _encode_array(array: NDArray[Any], param: str) -> bytes:
    """Encode as PNG at the lowest compression level, because speed matters more than size."""
    pixels = to_pixels(array, param)
    height, width = pixels.shape[:2]
    rows = np.zeros(
        (height, 1 + pixels[0].size), np.uint8
    )  # each row starts with its filter type, 0: none
    rows[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, RGB if pixels.ndim == 3 else GREY, 0, 0, 0)
    content = zlib.compress(rows.tobytes(), level=1)
    chunks = ((b"IHDR", header), (b"IDAT", content), (b"IEND", b""))
    return PNG_SIGNATURE + b"".join(_chunk(name, data) for name, data in chunks)


def _chunk(name: bytes, data: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(name + data))
    return struct.pack(">I", len(data)) + name + data + checksum
