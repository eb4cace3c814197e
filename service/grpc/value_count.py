"""Counts the values of a message before it is parsed.

An empty image or prompt takes two bytes on the wire and thirty or more as an object, so 32 MiB of
them would become most of a gigabyte, and take a second of the event loop, before any check of ours.
"""

from collections.abc import Mapping
from functools import cache
from typing import Final, Literal

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from service.errors import RequestTooLarge

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
MAX_VARINT_BYTES: Final = 10
# A message this small becomes a few megabytes at the worst, and is not worth the counting.
SMALL_BYTES: Final = 128 * 1024

# What a length-delimited field holds by its number: messages of a type, or packed numbers. Strings
# and what is not known are not there.
PACKED: Final = "packed"
Contents = Mapping[int, Descriptor | Literal["packed"]]


def check_value_count(
    raw: bytes, message_type: Descriptor, limit: int, *, small_bytes: int = SMALL_BYTES
) -> None:
    """Refuse a message with more values than a good one can have; what is malformed passes.

    Args:
        raw: As it came. It need not be well-formed: the parser says so afterwards.
        message_type: Which of its fields are messages again, and are counted into.
        limit: Values of all depths together.
        small_bytes: A message of at most so many bytes passes uncounted.

    Raises:
        RequestTooLarge: There are more.

    Source: protobuf's wire format, https://protobuf.dev/programming-guides/encoding/
    """
    if len(raw) > small_bytes and _count(raw, message_type, limit) > limit:
        raise RequestTooLarge(
            f"The message has more than {limit} values; split it.", code="too_many_items"
        )


def _count(raw: bytes, message_type: Descriptor, limit: int) -> int:
    """The number of values; it may stop as soon as they are more than the limit."""
    count = 0
    waiting = [(0, len(raw), message_type)]
    while waiting and count <= limit:
        position, end, described = waiting.pop()
        contents = _contents(described)
        while position < end and count <= limit:
            count += 1
            try:
                key, position = _varint(raw, position)
                wire_type = key & 7
                if wire_type == VARINT:
                    _, position = _varint(raw, position)
                elif wire_type == LENGTH:
                    length, position = _varint(raw, position)
                    stop = min(position + length, end)
                    inside = contents.get(key >> 3)
                    if inside == PACKED:
                        count += stop - position  # each has a byte or more
                    elif inside is not None:
                        waiting.append((position, stop, inside))
                    position += length
                else:
                    position += {FIXED64: 8, FIXED32: 4}.get(wire_type, 0)
            except (IndexError, ValueError):
                return count
    return count


@cache
def _contents(message_type: Descriptor) -> Contents:
    return {
        field.number: field.message_type or PACKED
        for field in message_type.fields
        if field.cpp_type != FieldDescriptor.CPPTYPE_STRING
    }


def _varint(raw: bytes, position: int) -> tuple[int, int]:
    """The number that begins at a position, and where it ends."""
    value = raw[position]
    if value < 0x80:
        return value, position + 1
    value = 0
    for index in range(MAX_VARINT_BYTES):
        byte = raw[position + index]
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, position + index + 1
    raise ValueError("this varint does not end")
