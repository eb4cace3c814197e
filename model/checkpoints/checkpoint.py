"""A checkpoint in memory, and what all of its readers do: load every tensor, refuse pickles."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
from pydantic import JsonValue
from torch import Tensor
from transformers import (
    PretrainedConfig,
    PreTrainedModel,
    Tipsv2DptForDensePrediction,
    Tipsv2Model,
    Tipsv2Tokenizer,
)
from transformers.core_model_loading import revert_weight_conversion

from model.encoder import Tipsv2Encoder, quiet_transformers
from model.package import PICKLES, sha256

Model = TypeVar("Model", bound=PreTrainedModel)
NUM_NAMES_SHOWN: Final = 4
# What transformers only warns of, by the field of its report.
PROBLEMS: Final = {
    "missing_keys": "lacks",
    "unexpected_keys": "has unknown tensors:",
    "mismatched_keys": "has tensors of other shapes than its sizes say:",
    "error_msgs": "cannot be loaded:",
}


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
    """CheckpointError if a folder holds a pickle, although none is ever opened."""
    pickles = [path.name for path in folder.iterdir() if path.suffix.lower() in PICKLES]
    if pickles:
        raise CheckpointError(
            f"{folder} holds {name_some(pickles)}, and a pickle can run code when it is "
            "loaded; remove it and keep the weights as safetensors or as the official .npz"
        )


def digests(paths: Iterable[Path]) -> dict[str, str]:
    """SHA-256 of files by name."""
    return {path.name: sha256(path) for path in sorted(paths)}


def load_weights(
    kind: type[Model], source: Path | Mapping[str, Tensor], config: PretrainedConfig, *, path: Path
) -> Model:
    """Load a model from a folder of safetensors, or from tensors; transformers maps their names.

    Args:
        kind: Class of the model.
        source: A folder, or tensors by name, in any generation of names, the official included.
        config: Sizes of the model.
        path: What error messages name.

    Returns:
        The model in float32 and evaluation mode.

    Raises:
        CheckpointError: Weights are unreadable, missing, left over, of a wrong shape or not finite.
    """
    # transformers' types lack the tuple that `output_loading_info` returns.
    from_pretrained: Any = kind.from_pretrained
    try:
        with quiet_transformers():
            model, found = from_pretrained(
                source if isinstance(source, Path) else None,
                state_dict=None if isinstance(source, Path) else dict(source),
                config=config,
                dtype=torch.float32,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except Exception as error:  # a damaged file can raise anything
        raise _error(path, f"cannot be loaded as {kind.__name__} ({error})") from error
    if not isinstance(source, Path):
        found = _as_in_source(found, source, model)
    problems = [
        f"{text} {name_some(key if isinstance(key, str) else str(key[0]) for key in found[field])}"
        for field, text in PROBLEMS.items()
        if found.get(field)
    ]
    if problems:
        raise _error(path, f"{' and '.join(problems)}; it is not a complete {kind.__name__}")
    tensors = model.state_dict() if isinstance(source, Path) else source
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise _error(path, f"has NaN or infinite values in {name!r}")
    loaded: Model = model
    return loaded


def _as_in_source(
    found: Mapping[str, Any], source: Mapping[str, Tensor], model: PreTrainedModel
) -> dict[str, Any]:
    """The same problems, by the names that the tensors had before transformers mapped them."""
    expected = revert_weight_conversion(model, model.state_dict())
    named = {
        "missing_keys": expected.keys() - source.keys(),
        "unexpected_keys": source.keys() - expected.keys(),
        "mismatched_keys": [
            name
            for name in expected.keys() & source.keys()
            if expected[name].shape != source[name].shape
        ],
    }
    # Tensors that transformers does not ask for are no problem, and one that it renames is known.
    return {**found, **{field: named[field] or found[field] for field in named if found[field]}}


def _error(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path} {what}: use the files as they were released, or save the model again"
    )
