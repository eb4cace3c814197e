"""Read a checkpoint's tokenizer, also from a SentencePiece model.

A model file is one protobuf message. Its schema comes with transformers: that of `sentencepiece`
needs a newer protobuf than gRPC does, and its reader does not give the compiled normaliser, without
which ids differ.

Lower-casing follows the checkpoint's own files. A `tokenizer.json` has a normaliser, which is kept;
transformers' lowers all letters. A `tokenizer.model` has none, and the release's code lowers ASCII
letters only before it (`tf.strings.lower` in google-deepmind/tips, `pytorch/text_encoder.py`).
"""

import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from tokenizers import AddedToken, normalizers
from transformers import Tipsv2Tokenizer
from transformers.utils import sentencepiece_model_pb2_new

from model import encoder
from model.checkpoints.checkpoint import CheckpointError

SCHEMA: Any = sentencepiece_model_pb2_new  # its messages are made when it is imported
JSON_FILE = "tokenizer.json"
SENTENCEPIECE_FILE = "tokenizer.model"
PAD_ID = 0
# Kinds of pieces and types of models, as numbered in the schema.
NORMAL, USER_DEFINED = 1, 4
BPE = 2


def read_tokenizer(folder: Path, *, vocab_size: int) -> tuple[Tipsv2Tokenizer, Path]:
    """Read `tokenizer.json`, or `tokenizer.model` if there is none, and return its path too.

    Args:
        folder: Folder of the checkpoint.
        vocab_size: Rows of the text tower's token embeddings.

    Raises:
        CheckpointError: Both files are missing, or the tokenizer is invalid or of another model.
    """
    path = folder / JSON_FILE
    if path.is_file():
        try:
            tokenizer = encoder.read_tokenizer(folder)
        except Exception as error:  # tokenizers raises plain Exceptions
            raise CheckpointError(
                f"{path} cannot be read as a TIPSv2 tokenizer ({error}); use the file as it was "
                "released"
            ) from error
    else:
        path = folder / SENTENCEPIECE_FILE
        if not path.is_file():
            raise CheckpointError(
                f"{folder} has no tokenizer; put the {SENTENCEPIECE_FILE} of the release or the "
                f"{JSON_FILE} of the transformers folder into it"
            )
        tokenizer = read_sentencepiece(path)
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


def read_sentencepiece(path: Path) -> Tipsv2Tokenizer:
    """Make a tokenizer with the ids of a SentencePiece model for lower-case text.

    Raises:
        CheckpointError: The file is damaged, or has other settings than the family's, so that ids
            would differ.
    """
    model = SCHEMA.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except (DecodeError, UnicodeError) as error:
        raise _unreadable(path, error) from error
    if not model.pieces:
        raise _unreadable(path, "it has no pieces")
    pieces, trained, normal = list(model.pieces), model.trainer_spec, model.normalizer_spec
    differences = {
        "is no BPE model": trained.model_type != BPE,
        "has no padding piece with id 0": trained.pad_id != PAD_ID,
        "does not write unknown characters as bytes": not trained.byte_fallback,
        "keeps runs of spaces": not normal.remove_extra_whitespaces,
        "puts no space before a text (add_dummy_prefix is off)": not normal.add_dummy_prefix,
        "has a piece twice": len({piece.piece for piece in pieces}) < len(pieces),
        "has no piece for unknown text": trained.unk_id not in range(len(pieces)),
    }
    if any(differences.values()):
        found = next(text for text, is_so in differences.items() if is_so)
        raise CheckpointError(
            f"{path} {found}, so transformers' TIPSv2 tokenizer cannot give its ids; use the "
            "tokenizer.model of the release"
        )
    try:
        tokenizer = Tipsv2Tokenizer(
            vocab={piece.piece: index for index, piece in enumerate(pieces)},
            merges=_merges(pieces),
            pad_token=pieces[trained.pad_id].piece,
            unk_token=pieces[trained.unk_id].piece,
        )
        # Lower the 26 ASCII letters, then normalise as the model does.
        steps: list[normalizers.Normalizer] = [
            normalizers.Replace(letter, letter.lower()) for letter in string.ascii_uppercase
        ]
        if normal.precompiled_charsmap:
            steps.append(normalizers.Precompiled(normal.precompiled_charsmap))
        tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(steps)
    except Exception as error:  # tokenizers raises plain Exceptions
        raise _unreadable(path, error) from error
    defined = [piece.piece for piece in pieces if piece.type == USER_DEFINED]
    if defined:
        tokenizer.add_tokens([AddedToken(text, normalized=False) for text in defined])
    return tokenizer


def _unreadable(path: Path, reason: object) -> CheckpointError:
    return CheckpointError(
        f"{path} cannot be read as a SentencePiece model ({reason}); use the tokenizer.model of "
        "the release"
    )


def lowered(tokenizer: Tipsv2Tokenizer) -> str:
    """Which letters a tokenizer lowers, for the manifest's provenance."""
    normalizer = tokenizer.backend_tokenizer.normalizer
    return "ASCII letters" if normalizer.normalize_str("\u00c9") == "\u00c9" else "all letters"


def _merges(pieces: Sequence[Any]) -> list[tuple[str, str]]:
    """Pairs to merge, the best first: `tokenizers` needs the order of SentencePiece's scores."""
    scores = {piece.piece: piece.score for piece in pieces if piece.type == NORMAL}
    merges: list[tuple[str, str]] = []
    # sorted() keeps the order of ids among equal scores.
    for text in sorted(scores, key=lambda text: -scores[text]):
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in scores and right in scores:
                merges.append((left, right))
    return merges
