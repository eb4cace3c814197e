"""A checkpoint in memory, and checks of its folder."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue
from transformers import Tipsv2DptForDensePrediction, Tipsv2Model, Tipsv2Tokenizer

from model.encoder import Tipsv2Encoder
from model.package import PICKLES, sha256

NUM_NAMES_SHOWN = 4


class CheckpointError(ValueError):
    """A checkpoint is refused; the message names the file and says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Checkpoint:
    """A verified checkpoint: no tensor is missing, left over, of a wrong shape or not finite.

    Attributes:
        model: The model in float32 and evaluation mode.
        dense: All three dense heads in float32 and evaluation mode, or None; the backbone shares
            the model's tensors.
        tokenizer: Its ids are rows of the text tower's token embeddings.
        variant: "b14", "l14", "so400m14", "g14", "s14", or "w192d6" for width 192 and depth 6.
        origin: For the manifest's provenance: kind of checkpoint, SHA-256 of its files, and
            settings that the files do not state.
    """

    model: Tipsv2Model
    dense: Tipsv2DptForDensePrediction | None = None
    tokenizer: Tipsv2Tokenizer
    variant: str
    origin: dict[str, JsonValue]

    @property
    def encoder(self) -> Tipsv2Encoder:
        """The model and its tokenizer as a package is written from them."""
        return Tipsv2Encoder(self.model, self.tokenizer)


def name_some(names: Iterable[str]) -> str:
    """List the first few names, for an error message."""
    ordered = sorted(names)
    shown = ", ".join(repr(name) for name in ordered[:NUM_NAMES_SHOWN])
    rest = len(ordered) - NUM_NAMES_SHOWN
    return f"{shown} and {rest} more" if rest > 0 else shown


def refuse_pickles(folder: Path) -> None:
    """Refuse a folder that holds a pickle, although none is ever opened.

    Raises:
        CheckpointError: The folder holds a pickle.
    """
    pickles = [path.name for path in folder.iterdir() if path.suffix.lower() in PICKLES]
    if pickles:
        raise CheckpointError(
            f"{folder} holds {name_some(pickles)}, and a pickle can run code when it is "
            "loaded; remove it and keep the weights as safetensors or as the official .npz"
        )


def digests(paths: Iterable[Path]) -> dict[str, str]:
    """SHA-256 of files by name."""
    return {path.name: sha256(path) for path in sorted(paths)}
