"""Read a checkpoint's tokenizer, also from a SentencePiece model without the SentencePiece library.

A model file is one protobuf message; its schema is `sentencepiece_model.proto` of
google/sentencepiece. Only the fields that a BPE tokenizer needs are read.

Lower-casing follows the checkpoint's own files. A `tokenizer.json` has a normaliser, which is kept;
transformers' lowers all letters. A `tokenizer.model` has none, and the release's code lowers ASCII
letters only before it (`tf.strings.lower` in google-deepmind/tips, `pytorch/text_encoder.py`).
"""

import string
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, normalizers
from transformers import Tipsv2Tokenizer

from model import encoder
from model.checkpoints.checkpoint import CheckpointError
from model.protobuf_wire import read_fields

JSON_FILE = "tokenizer.json"
SENTENCEPIECE_FILE = "tokenizer.model"
PAD_ID = 0
# Kinds of pieces and types of models, as numbered in the schema.
NORMAL, USER_DEFINED = 1, 4
BPE = 2
Value = int | bytes


def read_tokenizer(folder: Path, *, vocab_size: int) -> tuple[Tipsv2Tokenizer, Path]:
    """Read `tokenizer.json`, or `tokenizer.model` if there is none.

    Args:
        folder: Folder of the checkpoint.
        vocab_size: Rows of the text tower's token embeddings.

    Returns:
        The tokenizer and its file.

    Raises:
        CheckpointError: Both files are missing, or the tokenizer is invalid or of another model.
    """
    path = folder / JSON_FILE
    if path.is_file():
        tokenizer = _from_json(folder, path)
    else:
        path = folder / SENTENCEPIECE_FILE
        if not path.is_file():
            raise CheckpointError(
                f"{folder} has no tokenizer; put the {SENTENCEPIECE_FILE} of the release or the "
                f"{JSON_FILE} of the transformers folder into it"
            )
        tokenizer = tokenizer_from(parse_model(path), path)
    if tokenizer.pad_token_id != PAD_ID:
        raise CheckpointError(
            f"{path} pads with id {tokenizer.pad_token_id}, but the TIPSv2 family with {PAD_ID}; "
            "use the tokenizer that the model was trained with"
        )
    largest = max(tokenizer.get_vocab().values())
    if largest >= vocab_size:
        raise CheckpointError(
            f"{path} has ids up to {largest}, but the model embeds {vocab_size}; "
            "use the tokenizer that the model was trained with"
        )
    return tokenizer, path


def _from_json(folder: Path, path: Path) -> Tipsv2Tokenizer:
    try:
        return encoder.read_tokenizer(folder)
    except Exception as error:  # tokenizers raises plain Exceptions
        raise CheckpointError(
            f"{path} cannot be read as a TIPSv2 tokenizer ({error}); use the file "
            "as it was released"
        ) from error


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
        unknown_id: Id for text that no other piece covers.
        keeps_spaces: Whether runs of spaces are kept.
        has_prefix: Whether a text begins with a space.
    """

    pieces: list[Piece]
    charsmap: bytes
    model_type: int
    has_bytes: bool
    pad_id: int
    unknown_id: int
    keeps_spaces: bool
    has_prefix: bool


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
        has_prefix=bool(normalizer.get(3, 1)),
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


def tokenizer_from(model: SentencePieceModel, path: Path) -> Tipsv2Tokenizer:
    """Make a tokenizer with the ids of a SentencePiece model for lower-case text.

    Raises:
        CheckpointError: The model has other settings than the family's, so ids would differ.
    """
    differences = {
        "is no BPE model": model.model_type != BPE,
        "has no padding piece with id 0": model.pad_id != PAD_ID,
        "does not write unknown characters as bytes": not model.has_bytes,
        "keeps runs of spaces": model.keeps_spaces,
        "puts no space before a text (add_dummy_prefix is off)": not model.has_prefix,
        "has a piece twice": len({piece.text for piece in model.pieces}) < len(model.pieces),
        "has no piece for unknown text": model.unknown_id not in range(len(model.pieces)),
    }
    for difference, is_so in differences.items():
        if is_so:
            raise CheckpointError(
                f"{path} {difference}, so transformers' TIPSv2 tokenizer cannot give its ids; "
                "use the tokenizer.model of the release"
            )
    try:
        tokenizer = Tipsv2Tokenizer(
            vocab={piece.text: index for index, piece in enumerate(model.pieces)},
            merges=merges_of(model.pieces),
            pad_token=model.pieces[model.pad_id].text,
            unk_token=model.pieces[model.unknown_id].text,
        )
        tokenizer.backend_tokenizer.normalizer = _lower_ascii(model.charsmap)
    except Exception as error:  # tokenizers raises plain Exceptions
        raise CheckpointError(
            f"{path} cannot be read as a TIPSv2 tokenizer ({error}); use the tokenizer.model "
            "of the release"
        ) from error
    defined = [piece.text for piece in model.pieces if piece.kind == USER_DEFINED]
    if defined:
        tokenizer.add_tokens([AddedToken(text, normalized=False) for text in defined])
    return tokenizer


def _lower_ascii(charsmap: bytes) -> normalizers.Normalizer:
    """Lower the 26 ASCII letters, then normalise as the model does."""
    steps: list[normalizers.Normalizer] = [
        normalizers.Replace(letter, letter.lower()) for letter in string.ascii_uppercase
    ]
    if charsmap:
        steps.append(normalizers.Precompiled(charsmap))
    return normalizers.Sequence(steps)


def lowered(tokenizer: Tipsv2Tokenizer) -> str:
    """Which letters a tokenizer lowers, for the manifest's provenance."""
    normalizer = tokenizer.backend_tokenizer.normalizer
    return "ASCII letters" if normalizer.normalize_str("\u00c9") == "\u00c9" else "all letters"


def merges_of(pieces: Sequence[Piece]) -> list[tuple[str, str]]:
    """Pairs to merge, the best first.

    SentencePiece repeatedly merges the neighbours whose piece has the highest score; `tokenizers`
    needs the ordered pairs instead.
    """
    scores = {piece.text: piece.score for piece in pieces if piece.kind == NORMAL}
    merges: list[tuple[str, str]] = []
    # sorted() keeps the order of ids among equal scores.
    for text in sorted(scores, key=lambda text: -scores[text]):
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in scores and right in scores:
                merges.append((left, right))
    return merges
