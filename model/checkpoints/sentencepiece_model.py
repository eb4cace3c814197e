"""Reads a SentencePiece model file into its pieces and normaliser, with no library for it.

The file is one protocol-buffer message; its public schema is `sentencepiece_model.proto` of
google/sentencepiece. Only the fields that a BPE tokenizer needs are looked at.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from model.checkpoints.checkpoint import CheckpointError

NORMAL, UNKNOWN, USER_DEFINED, UNUSED, BYTE = 1, 2, 4, 5, 6
BPE = 2
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
Value = int | bytes


@dataclass(frozen=True, slots=True)
class Piece:
    """One entry of the vocabulary; its place is its id."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SentencePieceModel:
    """What a BPE model file says.

    Attributes:
        pieces: By id.
        charsmap: The compiled normaliser, empty for none.
        model_type: 2 is BPE.
        has_bytes: Whether unknown characters become bytes.
        pad_id: Below 0 where there is no padding piece.
        unknown_id: Of what nothing else covers.
        keeps_spaces: Whether runs of spaces are left as they are.
    """

    pieces: list[Piece]
    charsmap: bytes
    model_type: int
    has_bytes: bool
    pad_id: int
    unknown_id: int
    keeps_spaces: bool


def parse_model(path: Path) -> SentencePieceModel:
    """Parse a model file.

    Raises:
        CheckpointError: It is no such file, or cut short.
    """
    try:
        return _parse(path.read_bytes())
    except (ValueError, IndexError, struct.error) as error:
        raise CheckpointError(
            f"{path} is no SentencePiece model or was cut short ({error}); use the tokenizer.model "
            "of the release"
        ) from error


def _parse(content: bytes) -> SentencePieceModel:
    pieces: list[Piece] = []
    trainer: dict[int, Value] = {}
    normalizer: dict[int, Value] = {}
    for number, value in _fields(content):
        if number == 1:
            pieces.append(_piece(_bytes(value)))
        elif number == 2:
            trainer = dict(_fields(_bytes(value)))
        elif number == 3:
            normalizer = dict(_fields(_bytes(value)))
    if not pieces:
        raise ValueError("it has no pieces")
    # Numbers and defaults are the schema's.
    return SentencePieceModel(
        pieces=pieces,
        charsmap=_bytes(normalizer.get(2, b"")),
        model_type=_int(trainer.get(3, 1)),
        has_bytes=bool(trainer.get(35, 0)),
        pad_id=_int(trainer.get(43, -1)),
        unknown_id=_int(trainer.get(40, 0)),
        keeps_spaces=not normalizer.get(4, 1),
    )


def _piece(content: bytes) -> Piece:
    fields = dict(_fields(content))
    (score,) = struct.unpack("<f", _bytes(fields.get(2, bytes(4))))
    return Piece(_bytes(fields.get(1, b"")).decode(), score, _int(fields.get(3, NORMAL)))


def _fields(content: bytes) -> Iterator[tuple[int, Value]]:
    """Number and value of each field, in the wire format of protocol buffers."""
    at = 0
    while at < len(content):
        key, at = _varint(content, at)
        number, wire_type = key >> 3, key & 7
        if wire_type == VARINT:
            value, at = _varint(content, at)
            yield number, value
            continue
        if wire_type == BYTES:
            length, at = _varint(content, at)
        elif wire_type in (FIXED32, FIXED64):
            length = 4 if wire_type == FIXED32 else 8
        else:
            raise ValueError(f"an unknown wire type: {wire_type}")
        if at + length > len(content):
            raise ValueError("a field is longer than what is left of it")
        yield number, content[at : at + length]
        at += length


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError("a number is too long")


def _bytes(value: Value) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number stands where bytes should")
    return value


def _int(value: Value) -> int:
    if isinstance(value, bytes):
        raise ValueError("bytes stand where a number should")
    # Negative 32-bit numbers are written as 64 bits.
    return value - (1 << 64) if value >= 1 << 63 else value
