"""Reads the `google.rpc` details of a gRPC status without the package that defines them.

`googleapis-common-protos` is one dependency more for three small messages, so they are read by
their field numbers: https://github.com/googleapis/googleapis/blob/master/google/rpc/error_details.proto
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, slots=True)
class Details:
    """What the service tells: the reason, the field at fault, when to try again."""

    reason: str = ""
    field: str = ""
    retry_after_s: float | None = None

    @classmethod
    def read(cls, raw: bytes) -> Self:
        """From the bytes of a `google.rpc.Status`; what is not understood is left out."""
        reason, field = "", ""
        retry_after_s: float | None = None
        try:
            for number, detail in _fields(raw):
                if number != 3 or not isinstance(detail, bytes):
                    continue
                packed = dict(_fields(detail))
                name = _bytes(packed, 1).decode().rpartition(".")[2]
                inside = dict(_fields(_bytes(packed, 2)))
                if name == "ErrorInfo":
                    reason = _bytes(inside, 1).decode()
                elif name == "BadRequest":
                    violation = dict(_fields(_bytes(inside, 1)))
                    field = _bytes(violation, 1).decode()
                elif name == "RetryInfo":
                    delay = dict(_fields(_bytes(inside, 1)))
                    retry_after_s = _number(delay, 1) + 1e-9 * _number(delay, 2)
        except (ValueError, LookupError):
            pass
        return cls(reason, field, retry_after_s)


def _bytes(fields: dict[int, bytes | int], number: int) -> bytes:
    value = fields.get(number, b"")
    return value if isinstance(value, bytes) else b""


def _number(fields: dict[int, bytes | int], number: int) -> int:
    value = fields.get(number, 0)
    return value if isinstance(value, int) else 0


def _fields(raw: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Number and value of each field of a message."""
    position = 0
    while position < len(raw):
        key, position = _varint(raw, position)
        wire_type = key & 7
        if wire_type == VARINT:
            value, position = _varint(raw, position)
            yield key >> 3, value
        elif wire_type == LENGTH:
            length, position = _varint(raw, position)
            yield key >> 3, raw[position : position + length]
            position += length
        else:
            position += {FIXED64: 8, FIXED32: 4}[wire_type]


def _varint(raw: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = raw[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position
