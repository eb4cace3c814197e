"""Messages to bytes, large ones in parts.

protobuf writes a message into a buffer that it doubles and copies as it grows, and keeps the former
ones until the end: eight maps of 56 MB in all took 236 MB next to the message. So each array is
written by itself, which takes one buffer. What is joined are the same bytes in another order, which
parsers accept.

Source: protobuf.dev, "Encoding": fields may be written in any order, and what a length prefix is.
"""

from typing import Final

from google.protobuf.message import Message

# Type of a field of the wire format.
LENGTH_PREFIXED: Final = 2
# Arrays are fields of items of an answer; in a stream the answer is a field too.
DEPTH: Final = 2
STREAM_DEPTH: Final = 3


def write_message(message: Message, depth: int = DEPTH) -> bytes:
    """The bytes of a message; leaves it without the messages in it.

    Args:
        message: The message.
        depth: Down to this depth, messages in it are written by themselves.
    """
    return b"".join(_parts(message, depth))


def _parts(message: Message, depth: int) -> list[bytes]:
    parts: list[bytes] = []
    for field, value in message.ListFields() if depth else ():
        kind = field.message_type
        if kind is None or kind.GetOptions().map_entry:
            continue
        if field.is_repeated and depth == 1:
            continue  # such as a thousand classes of a mask: small, and not worth the time
        for item in list(value) if field.is_repeated else [value]:
            inside = _parts(item, depth - 1)
            length = sum(map(len, inside))
            parts += [_varint(field.number << 3 | LENGTH_PREFIXED) + _varint(length), *inside]
        message.ClearField(field.name)
    return [message.SerializeToString(), *parts]


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the highest bit says that more follow."""
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)
