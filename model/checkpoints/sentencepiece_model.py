"""Read the pieces and the normaliser of a SentencePiece model file, without its library.

The file is one protobuf message; its schema is `sentencepiece_model.proto` of google/sentencepiece.
Only the fields that a BPE tokenizer needs are read.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from model.checkpoints.checkpoint import CheckpointError
from model.protobuf_wire import read_fields

NORMAL, UNKNOWN, USER_DEFINED, UNUSED, BYTE = 1, 2, 4, 5, 6
BPE = 2
Value = int | bytes


@dataclass(frozen=True, slots=True)
class Piece:
    """One entry of the vocabulary; its index is its id."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SentencePieceModel:
    """The contents of a BPE model file.

    Attributes:
        pieces: Vocabulary, indexed by id.
        charsmap: Compiled normaliser; empty if there is none.
        model_type: 2 is BPE.
        has_bytes: Whether unknown characters are encoded as bytes.
        pad_id: Id of the padding piece; negative if there is none.
        unknown_id: Id of text that no other piece covers.
        keeps_spaces: Whether runs of spaces are kept.
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
        CheckpointError: The file is not a SentencePiece model, or is cut off.
    """
    try:
        return _parse(path.read_bytes())
    except (ValueError, struct.error) as error:
        raise CheckpointError(
            f"{path} is not a SentencePiece model or is cut off ({error}); use the tokenizer.model "
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
        raise ValueError("no pieces")
    # Field numbers and defaults are those of the schema.
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
    for number, _, value in read_fields(content):
        yield number, content[value] if isinstance(value, slice) else value


def _bytes(value: Value) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number in place of bytes")
    return value


def _int(value: Value) -> int:
    if isinstance(value, bytes):
        raise ValueError("bytes in place of a number")
    # Negative numbers are written in 64 bits, two's complement.
    return value - (1 << 64) if value >= 1 << 63 else value
