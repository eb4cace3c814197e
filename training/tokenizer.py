"""Trains a tokenizer on a run's captions, in transformers' format.

The 32,000 pieces of the released models would be most of a small student's weights.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import Tipsv2Tokenizer

_SPACE = "\u2581"


def find_tokenizer(folder: Path) -> Path | None:
    """The folder of the tokenizer of a run or of a released model; None if there is none yet."""
    places = (folder / "tokenizer", folder / "model", folder)
    return next((place for place in places if (place / "tokenizer.json").exists()), None)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tipsv2Tokenizer:
    """Learn a lower-casing byte-fallback BPE vocabulary.

    Args:
        texts: Captions, and words that should have few tokens.
        vocab_size: Number of pieces, including the 256 bytes, padding (0) and unknown (1).

    Returns:
        A tokenizer without begin or end tokens.
    """
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    draft = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    draft.normalizer = normalizers.Lowercase()
    draft.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="always"),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<pad>", "<unk>", *bytes_],
        min_frequency=1,
        show_progress=False,
    )
    draft.train_from_iterator(texts, trainer)
    learnt = json.loads(draft.to_str())["model"]
    merges = [(left, right) for left, right in learnt["merges"]]
    return Tipsv2Tokenizer(vocab=learnt["vocab"], merges=merges)
