"""Arrays to PNG files.

Shape legend: H W pixels, C samples of a pixel, B bytes of a row.
"""

import struct
import zlib
from enum import IntEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
UP_FILTER: Final = 2


class ColourType(IntEnum):
    """What the samples of a pixel mean."""

    GREY = 0
    RGB = 2
    PALETTE = 3


def write_png(
    samples_HWC: NDArray[np.uint8] | NDArray[np.uint16],
    colour_type: ColourType,
    colours: bytes = b"",
    *,
    strategy: int = zlib.Z_RLE,
) -> bytes:
    """A PNG of 8 or 16 bits a sample.

    Each row holds what has changed since the one above. Where only runs are packed, as by default,
    this makes of masks and of their overlays smaller files than Pillow's quick levels, in less than
    half the time.

    Args:
        samples_HWC: Of one channel, or of three for RGB.
        colour_type: What they mean.
        colours: RGB of each value, for a palette.
        strategy: Of zlib.
    """
    height, width, _ = samples_HWC.shape
    num_bits = 8 * samples_HWC.dtype.itemsize
    big_endian = np.ascontiguousarray(samples_HWC, dtype=samples_HWC.dtype.newbyteorder(">"))
    samples_HB = big_endian.reshape(height, -1).view(np.uint8)
    rows = np.empty((height, samples_HB.shape[1] + 1), np.uint8)
    rows[:, 0] = UP_FILTER
    rows[0, 1:] = samples_HB[0]
    np.subtract(samples_HB[1:], samples_HB[:-1], out=rows[1:, 1:])
    packer = zlib.compressobj(1, strategy=strategy)
    packed = packer.compress(rows.data) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, num_bits, colour_type, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"PLTE", colours), (b"IDAT", packed), (b"IEND", b"")]
    written = (_chunk(name, data) for name, data in chunks if data or name == b"IEND")
    return SIGNATURE + b"".join(written)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
