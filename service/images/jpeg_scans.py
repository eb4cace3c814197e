"""Counts the scans of a JPEG file, each of which costs a pass over every pixel of the image.

A scan may have 30 bytes, so that without a bound a file of 600 kB is minutes of work within all
other limits. Cameras and optimizers write about ten; libtiff, too, reads 100 in its JPEG images.
"""

import re
from typing import Final

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
