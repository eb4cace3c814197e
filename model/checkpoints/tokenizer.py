"""Finds a checkpoint's tokenizer and makes transformers' Tipsv2Tokenizer of it."""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken
from transformers import Tipsv2Tokenizer

from model.checkpoints.checkpoint import CheckpointError
from model.checkpoints.sentencepiece_model import (
    BPE,
    NORMAL,
    USER_DEFINED,
    Piece,
    SentencePieceModel,
    parse_model,
)

JSON_FILE = "tokenizer.json"
SENTENCEPIECE_FILE = "tokenizer.model"
PAD_ID = 0


def read_tokenizer(folder: Path, *, vocab_size: int) -> tuple[Tipsv2Tokenizer, Path]:
    """Read `tokenizer.json` or, where there is none, `tokenizer.model`.

    Args:
        folder: Of the checkpoint.
        vocab_size: Rows of the text tower's token embeddings.

    Returns:
        The tokenizer and the file it is from.

    Raises:
        CheckpointError: There is neither, it cannot be read, or it is not this model's.
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
            f"{path} pads with id {tokenizer.pad_token_id}, and the TIPSv2 family with {PAD_ID}; "
            "use the tokenizer that the model was trained with"
        )
    largest = max(tokenizer.get_vocab().values())
    if largest >= vocab_size:
        raise CheckpointError(
            f"{path} has ids up to {largest}, and the model embeds {vocab_size} of them; "
            "use the tokenizer that the model was trained with"
        )
    return tokenizer, path


def tokenizer_from(model: SentencePieceModel, path: Path) -> Tipsv2Tokenizer:
    """Make the tokenizer that gives the ids of a SentencePiece model for lower-cased text.

    Raises:
        CheckpointError: The model does not work as the family's does, so ids would differ.
    """
    differences = {
        "is no BPE model": model.model_type != BPE,
        "has no padding piece with id 0": model.pad_id != PAD_ID,
        "does not write unknown characters as bytes": not model.has_bytes,
        "keeps runs of spaces": model.keeps_spaces,
        "has a piece twice": len({piece.text for piece in model.pieces}) < len(model.pieces),
        "has no piece for what it does not know": model.unknown_id not in range(len(model.pieces)),
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
            _spm_precompiled_charsmap=model.charsmap or None,
        )
    except Exception as error:  # all that tokenizers raises, such as for a damaged normaliser
        raise CheckpointError(
            f"{path} cannot be read as a TIPSv2 tokenizer ({error}); use the tokenizer.model "
            "of the release"
        ) from error
    defined = [piece.text for piece in model.pieces if piece.kind == USER_DEFINED]
    if defined:
        tokenizer.add_tokens([AddedToken(text, normalized=False) for text in defined])
    return tokenizer


def merges_of(pieces: Sequence[Piece]) -> list[tuple[str, str]]:
    """Pairs to merge, the best first.

    SentencePiece merges, again and again, the neighbours that make the piece of the highest score;
    `tokenizers` wants the pairs themselves in order.
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


def _from_json(folder: Path, path: Path) -> Tipsv2Tokenizer:
    try:
        tokenizer: Tipsv2Tokenizer = Tipsv2Tokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # tokenizers raises plain Exceptions, and much else goes wrong here
        raise CheckpointError(
            f"{path} cannot be read as a TIPSv2 tokenizer ({error}); use the file "
            "as it was released"
        ) from error
    return tokenizer
