"""`python -m training average`: the mean of models of one training.

Of a model and its start (WiSE-FT, arXiv:2109.01903): what training forgot comes back, and what it
learnt stays. Or of late checkpoints.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic.dataclasses import dataclass
from transformers import Tipsv2Model, Tipsv2Tokenizer

from training.checkpoint import is_checkpoint, load_weights
from training.methods.teacher import find_model
from training.options import argument, option
from training.tokenizer import find_tokenizer


@dataclass(frozen=True, kw_only=True)
class Options:
    """Of the job."""

    models: tuple[Path, ...] = argument(
        "two folders or more, with one tokenizer: of runs, of models, or of checkpoints "
        "(RUN/checkpoints/step-N)"
    )
    share: float | None = option("of the second of two models, 0 to 1 (default: all equally)", None)
    output: Path = option("folder of the mean")


def run(options: Options) -> None:
    """Average."""
    average_models(options.models, share=options.share, output=options.output)
    print(f"the mean is in {options.output}")


def average_models(folders: Sequence[Path], *, output: Path, share: float | None = None) -> None:
    """Write the mean of models, with their tokenizer; one of them at a time is in memory.

    Args:
        folders: Two or more: of a run, of a model, or of one checkpoint of a run.
        output: Folder of the mean.
        share: Of the second of two models; None if all count equally.

    Raises:
        ValueError: Too few models, other sizes or tokenizers, or a wrong share.
        FileNotFoundError: There is no model, or no tokenizer.
    """
    if len(folders) < 2:
        raise ValueError("a mean takes two models or more")
    if share is not None and not (len(folders) == 2 and 0 <= share <= 1):
        raise ValueError(f"--share is for two models and lies in 0..1; here {share}")
    model, tokenizer = _load(folders[0])
    mean = model.state_dict()
    for number, folder in enumerate(folders[1:], start=2):
        other, other_tokenizer = _load(folder)
        theirs = other.state_dict()
        if {k: v.shape for k, v in mean.items()} != {k: v.shape for k, v in theirs.items()}:
            raise ValueError(f"{folders[0]} and {folder} have different sizes")
        if tokenizer.get_vocab() != other_tokenizer.get_vocab():
            raise ValueError(f"{folders[0]} and {folder} have different tokenizers")
        weight = 1 / number if share is None else share
        mean = {k: torch.lerp(v, theirs[k], weight) for k, v in mean.items()}
    model.load_state_dict(mean)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)


def _load(folder: Path) -> tuple[Tipsv2Model, Tipsv2Tokenizer]:
    run = folder.parents[1] if is_checkpoint(folder) else folder
    model, tokenizer = Tipsv2Model.from_pretrained(find_model(run)), find_tokenizer(run)
    if tokenizer is None:
        raise FileNotFoundError(f"no tokenizer in {run}")
    if run != folder:
        load_weights(folder, model)
    return model, Tipsv2Tokenizer.from_pretrained(tokenizer)
