"""The weighted mean of two models, one of which was trained from the other (WiSE-FT).

See arXiv:2109.01903: what training forgot comes back, and what it learnt stays.
"""

from pathlib import Path

import torch
from transformers import Tipsv2Model, Tipsv2Tokenizer

from training.methods.teacher import MODEL_FOLDER
from training.tokenizer import find_tokenizer


def average_models(first: Path, second: Path, *, share: float, output: Path) -> None:
    """Write the mean of two models, with their tokenizer.

    Args:
        first: The folder of a run or of a model.
        second: Likewise.
        share: Of the second.
        output: Folder of the mean.

    Raises:
        ValueError: The models differ in size or tokenizer, or the share is none.
        FileNotFoundError: There is no model, or no tokenizer.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"--share must lie in 0..1, not {share}")
    model, tokenizer = _load(first)
    other, other_tokenizer = _load(second)
    ours, theirs = model.state_dict(), other.state_dict()
    if {k: v.shape for k, v in ours.items()} != {k: v.shape for k, v in theirs.items()}:
        raise ValueError(f"{first} and {second} have different sizes")
    if tokenizer.get_vocab() != other_tokenizer.get_vocab():
        raise ValueError(f"{first} and {second} have different tokenizers")
    model.load_state_dict({k: torch.lerp(v, theirs[k], share) for k, v in ours.items()})
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)


def _load(folder: Path) -> tuple[Tipsv2Model, Tipsv2Tokenizer]:
    place = folder / MODEL_FOLDER if (folder / MODEL_FOLDER).is_dir() else folder
    tokenizer = find_tokenizer(folder)
    if tokenizer is None or not (place / "config.json").exists():
        raise FileNotFoundError(f"no model with its tokenizer in {folder}")
    return Tipsv2Model.from_pretrained(place), Tipsv2Tokenizer.from_pretrained(tokenizer)
