"""PNG files from arrays.

Shape legend: H W pixels, B bytes of a row.
"""

import struct
import zlib
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
UP_FILTER: Final = 2
# Colour types of the header.
GREY, RGB, PALETTE = 0, 2, 3
# Pixels that are made and compressed at once.
BAND_PIXELS: Final = 512 * 1024
Samples = NDArray[np.uint8] | NDArray[np.uint16]


def write_png(
    size_hw: tuple[int, int],
    samples_of: Callable[[slice], Samples],
    palette: bytes = b"",
    *,
    strategy: int = zlib.Z_RLE,
) -> bytes:
    """Write a PNG with 8 or 16 bits a sample.

    Each row is stored as its difference from the row above. With run-length compression, the
    default, masks and overlays become smaller than with Pillow's fast levels, in less than half the
    time. Rows are made and compressed in bands, so that a large file takes little memory.

    Args:
        size_hw: Height and width.
        samples_of: Samples of some rows, uint8 or uint16, [h, W] or for RGB [h, W, 3].
        palette: RGB of each value; empty for grey and for RGB samples.
        strategy: Compression strategy of zlib.
    """
    height, width = size_hw
    packer = zlib.compressobj(1, strategy=strategy)
    packed = []
    above_B: NDArray[np.uint8] | int = 0
    num_bits, colour_type = 8, PALETTE
    num_rows = max(1, BAND_PIXELS // width)
    for top in range(0, height, num_rows):
        samples = samples_of(slice(top, top + num_rows))
        num_bits = 8 * samples.dtype.itemsize
        colour_type = PALETTE if palette else RGB if samples.ndim == 3 else GREY
        big_endian = np.ascontiguousarray(samples, dtype=samples.dtype.newbyteorder(">"))
        samples_HB = big_endian.reshape(len(samples), -1).view(np.uint8)
        rows = np.empty((len(samples), samples_HB.shape[1] + 1), np.uint8)
        rows[:, 0] = UP_FILTER
        np.subtract(samples_HB[0], above_B, out=rows[0, 1:])
        np.subtract(samples_HB[1:], samples_HB[:-1], out=rows[1:, 1:])
        above_B = samples_HB[-1].copy()
        packed.append(packer.compress(rows.data))
    packed.append(packer.flush())
    header = struct.pack(">IIBBBBB", width, height, num_bits, colour_type, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"PLTE", palette), (b"IDAT", b"".join(packed)), (b"IEND", b"")]
    written = (_chunk(name, data) for name, data in chunks if data or name == b"IEND")
    return SIGNATURE + b"".join(written)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
