"""Counts the values of a message before it is parsed.

An empty picture or prompt takes two bytes on the wire and thirty or more as an object, so 32 MiB of
them would become most of a gigabyte, and take a second of the event loop, before any check of ours.
"""

from typing import Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from service.errors import RequestTooLarge

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
MAX_VARINT_BYTES: Final = 10


def check_value_count(raw: bytes, message_type: Descriptor, limit: int) -> None:
    """Refuse a message with more values than a good one can have; what is malformed passes.

    Args:
        raw: As it came. It need not be well-formed: the parser says so afterwards.
        message_type: Which of its fields are messages again, and are counted into.
        limit: Values of all depths together.

    Raises:
        RequestTooLarge: There are more.

    Source: protobuf's wire format, https://protobuf.dev/programming-guides/encoding/
    """
    count = 0
    waiting = [(0, len(raw), message_type)]
    while waiting:
        position, end, described = waiting.pop()
        while position < end:
            count += 1
            if count > limit:
                raise _too_many(limit)
            try:
                key, position = _varint(raw, position)
                wire_type = key & 7
                if wire_type == VARINT:
                    _, position = _varint(raw, position)
                elif wire_type == LENGTH:
                    length, position = _varint(raw, position)
                    field = described.fields_by_number.get(key >> 3)
                    if field is not None and field.message_type is not None:
                        waiting.append((position, min(position + length, end), field.message_type))
                    elif field is not None and field.cpp_type != FieldDescriptor.CPPTYPE_STRING:
                        # Packed: each has a byte or more of what is really there.
                        count += min(length, end - position)
                    position += length
                else:
                    position += {FIXED64: 8, FIXED32: 4}.get(wire_type, 0)
            except (IndexError, ValueError):
                return
    if count > limit:
        raise _too_many(limit)


def _too_many(limit: int) -> RequestTooLarge:
    return RequestTooLarge(
        f"The message has more than {limit} values; split it.", code="too_many_items"
    )


def _varint(raw: bytes, position: int) -> tuple[int, int]:
    """The number that begins at a position, and where it ends."""
    value = 0
    for index in range(MAX_VARINT_BYTES):
        byte = raw[position + index]
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, position + index + 1
    raise ValueError("this varint does not end")
