"""Masks as Label Studio's brush stores them: run lengths of RGBA values, packed in bits.

Source: the format of rle-pack, as `label_studio_sdk.converter.brush` of 2.1.2 reads it.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

VALUES_PER_PIXEL: Final = 4
# The format allows four widths of run lengths; one is enough.
LENGTH_BITS: Final = 16
VALUE_BITS: Final = 8
HEADER_BITS: Final = 53
RUN_BITS: Final = 3 + LENGTH_BITS + VALUE_BITS


def pack_mask(mask_HW: NDArray[np.bool_]) -> list[int]:
    """The bytes of a mask."""
    pixels = mask_HW.ravel()
    begins = np.concatenate([[0], np.flatnonzero(pixels[1:] != pixels[:-1]) + 1])
    lengths = np.diff(np.append(begins, pixels.size)) * VALUES_PER_PIXEL
    codes = []
    for length, is_inside in zip(lengths.tolist(), pixels[begins].tolist(), strict=True):
        value, left = 255 * is_inside, length
        while left:
            part = min(left, 2**LENGTH_BITS)
            # A run (1), the first width (00), its length less one, its value.
            codes.append(1 << RUN_BITS - 1 | part - 1 << VALUE_BITS | value)
            left -= part
    # Number of values in 32 bits; then widths, each less one: 5 bits of values, 4 of lengths.
    header = pixels.size * VALUES_PER_PIXEL << 21 | VALUE_BITS - 1 << 16 | 0xFFFF
    bits = [_bits([header], HEADER_BITS), _bits(codes, RUN_BITS)]
    packed: list[int] = np.packbits(np.concatenate(bits)).tolist()
    return packed


def _bits(codes: list[int], num_bits: int) -> NDArray[Any]:
    places = np.arange(num_bits - 1, -1, -1)
    return (np.array(codes, np.int64)[:, None] >> places & 1).astype(np.uint8).ravel()
