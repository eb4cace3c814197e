"""The fields of a protobuf message, read from its bytes without a schema.

Serving reads ONNX graphs without installing their library, and counts the values of a request
before the real parser allocates them.

Source: https://protobuf.dev/programming-guides/encoding/
"""

import mmap
from collections.abc import Iterator
from typing import Final

VARINT: Final = 0
FIXED64: Final = 1
BYTES: Final = 2
FIXED32: Final = 5
GROUP_MARKS: Final = (3, 4)
MAX_VARINT_BYTES: Final = 10

Buffer = bytes | mmap.mmap


def read_fields(
    buffer: Buffer, start: int = 0, end: int | None = None, *, allow_groups: bool = False
) -> Iterator[tuple[int, int, int | slice]]:
    """Yield the number, wire type and value of each field, in order.

    A varint is an unsigned integer; any other value is the slice of the buffer that holds it. Marks
    of groups (a deprecated encoding) come with an empty slice if they are allowed.

    Raises:
        ValueError: The message is cut off, or has an unknown wire type.
    """
    position, end = start, len(buffer) if end is None else end
    while position < end:
        tag, position = _read_varint(buffer, position, end)
        wire_type = tag & 7
        if wire_type == VARINT:
            number, position = _read_varint(buffer, position, end)
            yield tag >> 3, wire_type, number
            continue
        if wire_type == BYTES:
            length, position = _read_varint(buffer, position, end)
        elif wire_type in (FIXED32, FIXED64):
            length = 4 if wire_type == FIXED32 else 8
        elif allow_groups and wire_type in GROUP_MARKS:
            length = 0
        else:
            raise ValueError(f"unknown wire type {wire_type} at byte {position}")
        if length > end - position:
            raise ValueError(
                f"a field of {length} bytes at byte {position}, but {end - position} bytes are left"
            )
        yield tag >> 3, wire_type, slice(position, position + length)
        position += length


def read_varints(buffer: Buffer, start: int, end: int) -> Iterator[int]:
    """Yield the integers of a packed field, unsigned; ValueError if the last one is cut off."""
    position = start
    while position < end:
        value, position = _read_varint(buffer, position, end)
        yield value


def _read_varint(buffer: Buffer, position: int, end: int) -> tuple[int, int]:
    """The integer at a position, and the position after it."""
    value = 0
    for index in range(min(MAX_VARINT_BYTES, end - position)):
        byte = buffer[position + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, position + index + 1
    raise ValueError(f"a varint at byte {position} does not end")
