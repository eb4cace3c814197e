"""Label maps to palette PNG, overlay PNG and npy; and the colours of classes.

Shape legend: H W pixels, C candidate colours.
"""

import struct
import zlib
from functools import cache
from io import BytesIO
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.winner_map import Labels

MAX_PALETTE_CLASSES: Final = 255
OVERLAY_OPACITY: Final = 0.55
PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
PALETTE_TYPE: Final = 3
UP_FILTER: Final = 2
OVERLAY_LEVEL: Final = 1  # zlib's; photos hardly get smaller beyond it

# OKLab lightness, from 0 to 1, within which a class's colour lies.
DARKEST: Final = 0.45
PALEST: Final = 0.93

# From linear sRGB to OKLab (B. Ottosson, 2020), in which distance is how different colours look.
RGB_TO_LMS: Final = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
LMS_TO_LAB: Final = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


@cache
def palette() -> NDArray[np.uint8]:
    """RGB colours [256, 3]: black for background, then each as far from all before it as can be.

    The colour of a class depends on its number alone, so that masks of one request look alike.
    """
    levels = np.linspace(0, 255, 11).round().astype(np.uint8)
    grid_C3 = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    lab_C3 = _to_oklab(grid_C3)
    # Background's black and paper's white are taken.
    nearest_C = np.minimum(_distance(lab_C3, lab_C3[0]), _distance(lab_C3, lab_C3[-1]))
    too_dark_or_pale_C = (lab_C3[:, 0] < DARKEST) | (lab_C3[:, 0] > PALEST)
    nearest_C[too_dark_or_pale_C] = -1
    colours = [grid_C3[0]]
    for _ in range(MAX_PALETTE_CLASSES):
        chosen = int(nearest_C.argmax())
        colours.append(grid_C3[chosen])
        nearest_C = np.minimum(nearest_C, _distance(lab_C3, lab_C3[chosen]))
    return np.array(colours, dtype=np.uint8)


def class_color(label: int) -> str:
    """The colour of the k-th class as `#rrggbb`; they repeat after 255."""
    colour = palette()[(label - 1) % MAX_PALETTE_CLASSES + 1]
    return "#" + bytes(colour).hex()


def encode_mask_png(labels_HW: Labels) -> bytes:
    """A palette PNG whose pixel values are the labels.

    Raises:
        ValueError: A label above 255.
    """
    if labels_HW.dtype != np.uint8 and labels_HW.max(initial=0) > MAX_PALETTE_CLASSES:
        raise ValueError(f"a palette has room for {MAX_PALETTE_CLASSES} classes")
    height, width = labels_HW.shape
    # Of each row what has changed since the row above: mostly zeros, which run lengths pack best.
    rows = np.empty((height, width + 1), np.uint8)
    rows[:, 0] = UP_FILTER
    rows[0, 1:] = labels_HW[0]
    np.subtract(labels_HW[1:], labels_HW[:-1], out=rows[1:, 1:], casting="unsafe")
    packer = zlib.compressobj(1, strategy=zlib.Z_RLE)
    header = struct.pack(">IIBBBBB", width, height, 8, PALETTE_TYPE, 0, 0, 0)
    chunks = (
        (b"IHDR", header),
        (b"PLTE", palette().tobytes()),
        (b"IDAT", packer.compress(rows.data) + packer.flush()),
        (b"IEND", b""),
    )
    return PNG_SIGNATURE + b"".join(_chunk(name, data) for name, data in chunks)


def encode_overlay_png(labels_HW: Labels, pixels_HW3: NDArray[np.uint8]) -> bytes:
    """The picture with each class's colour laid over it; background stays as it is.

    Raises:
        ValueError: Mask and picture differ in size.
    """
    if labels_HW.shape != pixels_HW3.shape[:2]:
        raise ValueError(f"a mask {labels_HW.shape} does not fit a picture {pixels_HW3.shape}")
    index_HW = np.where(labels_HW, (labels_HW - 1) % MAX_PALETTE_CLASSES + 1, 0).astype(np.uint8)
    colours = Image.fromarray(palette()[index_HW])
    picture = Image.fromarray(pixels_HW3)
    mixed = Image.blend(picture, colours, OVERLAY_OPACITY)
    mixed.paste(picture, mask=Image.fromarray(labels_HW == 0))
    return _png(mixed)


def encode_npy(array: NDArray[np.generic]) -> bytes:
    """The array as an `.npy` file, little-endian."""
    stream = BytesIO()
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    np.save(stream, np.ascontiguousarray(little), allow_pickle=False)
    return stream.getvalue()


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _png(image: Image.Image) -> bytes:
    stream = BytesIO()
    image.save(stream, "PNG", compress_level=OVERLAY_LEVEL)
    return stream.getvalue()


def _to_oklab(rgb_C3: NDArray[np.uint8]) -> NDArray[np.float64]:
    value_C3 = rgb_C3 / 255
    linear_C3 = np.where(value_C3 > 0.04045, ((value_C3 + 0.055) / 1.055) ** 2.4, value_C3 / 12.92)
    lab_C3: NDArray[np.float64] = np.cbrt(linear_C3 @ RGB_TO_LMS.T) @ LMS_TO_LAB.T
    return lab_C3


def _distance(lab_C3: NDArray[np.float64], lab_3: NDArray[np.float64]) -> NDArray[np.float64]:
    distance_C: NDArray[np.float64] = np.linalg.norm(lab_C3 - lab_3, axis=1)
    return distance_C
