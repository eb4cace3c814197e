"""Messages to bytes, large ones item by item.

protobuf writes a message into a buffer that it doubles and copies as it grows: eight maps of 56 MB
in all took 236 MB next to the message. An item written by itself fits its first buffer, and what is
joined are the same bytes in another order, which parsers accept.

Source: protobuf.dev, "Encoding": fields may be written in any order, and what a length prefix is.
"""

from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor
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
    if isinstance(message, Enclosed):
        content = write_message(message.inner)
        outer = message.outer.SerializeToString()
        return b"".join([outer, _key(message.number, content), content])
    pieces = []
    for field, value in message.ListFields():
        if _is_list_of_messages(field, value):
            items = list(value)
            message.ClearField(field.name)
            for item in items:
                content = item.SerializeToString()
                pieces += [_key(field.number, content), content]
    return b"".join([message.SerializeToString(), *pieces])


def _is_list_of_messages(field: FieldDescriptor, value: Any) -> bool:
    if isinstance(value, Message) or field.message_type is None:
        return False
    return not field.message_type.GetOptions().map_entry


def _key(number: int, content: bytes) -> bytes:
    """What precedes the bytes of a field: its number, its type and its length."""
    return _varint(number << 3 | LENGTH_PREFIXED) + _varint(len(content))


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the highest bit says that more follow."""
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)
