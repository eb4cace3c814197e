"""Messages to bytes, large ones in parts.

protobuf writes a message into a buffer that it doubles and copies as it grows, and keeps the former
ones until the end: eight maps of 56 MB in all took 236 MB next to the message. So each array is
written by itself, which takes one buffer. What is joined are the same bytes in another order, which
parsers accept.

Source: protobuf.dev, "Encoding": fields may be written in any order, and what a length prefix is.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

# Type of a field of the wire format.
LENGTH_PREFIXED: Final = 2


@dataclass(frozen=True, slots=True)
class Enclosed:
    """A message to be written as a field of another, without being copied into it.

    Attributes:
        outer: The other message, without the field.
        number: The field's number.
        inner: The message.
    """

    outer: Message
    number: int
    inner: Message


def write_message(message: Message | Enclosed) -> bytes:
    """The bytes of a message; leaves it without the messages in its lists."""
    return b"".join(_parts(message))


def _parts(message: Message | Enclosed) -> list[bytes]:
    if isinstance(message, Enclosed):
        return [
            message.outer.SerializeToString(),
            *_field(message.number, _parts(message.inner)),
        ]
    parts = []
    for field, value in message.ListFields():
        if _is_list_of_messages(field, value):
            items = list(value)
            message.ClearField(field.name)
            for item in items:
                parts += _field(field.number, _parts_of_item(item))
    return [message.SerializeToString(), *parts]


def _parts_of_item(item: Message) -> list[bytes]:
    """Its arrays, each by itself, and the rest."""
    parts = []
    for name, number in _single_messages(item.DESCRIPTOR):
        if item.HasField(name):
            part = getattr(item, name)
            item.ClearField(name)
            parts += _field(number, [part.SerializeToString()])
    return [item.SerializeToString(), *parts]


@cache
def _single_messages(kind: Descriptor) -> list[tuple[str, int]]:
    """Names and numbers of the fields that are a message, and not a list of them."""
    return [
        (field.name, field.number)
        for field in kind.fields
        if field.message_type is not None and not field.is_repeated
    ]


def _is_list_of_messages(field: FieldDescriptor, value: Any) -> bool:
    if isinstance(value, Message) or field.message_type is None:
        return False
    return not field.message_type.GetOptions().map_entry


def _field(number: int, parts: list[bytes]) -> list[bytes]:
    """A field of these bytes, after its number, its type and its length."""
    length = sum(map(len, parts))
    return [_varint(number << 3 | LENGTH_PREFIXED) + _varint(length), *parts]


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the highest bit says that more follow."""
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)
