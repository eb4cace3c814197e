"""Read a checkpoint of any supported layout, and verify it."""

from pathlib import Path

from pydantic import JsonValue
from transformers import Tipsv2DptForDensePrediction, Tipsv2Model

from model.checkpoints.checkpoint import Checkpoint, CheckpointError, digests, refuse_pickles
from model.checkpoints.dense_folder import read_dense_folder
from model.checkpoints.official import is_pair_folder, read_pair
from model.checkpoints.tokenizer import lowered, read_tokenizer
from model.checkpoints.transformers_folder import is_transformers_folder, read_model


def read_checkpoint(path: Path, *, dense: Path | None = None) -> Checkpoint:
    """Read a model, its tokenizer and optionally its dense heads; nothing is downloaded.

    Args:
        path: A folder: of transformers (`config.json`, safetensors, tokenizer), or with the
            official pair (`..._vision.npz`, `..._text.npz`) and a tokenizer.
        dense: The dense heads: a -dpt folder of transformers.

    Raises:
        CheckpointError: The checkpoint is missing, incomplete or invalid.
    """
    if not path.is_dir():
        raise CheckpointError(
            f"{path} is not a folder; name the folder that holds a model's weights and tokenizer"
        )
    refuse_pickles(path)
    is_transformers, is_pair = is_transformers_folder(path), is_pair_folder(path)
    if is_transformers and is_pair:
        raise CheckpointError(
            f"{path} holds both a config.json and official .npz files; keep one of the two models "
            "in a folder"
        )
    if not is_transformers and not is_pair:
        raise CheckpointError(
            f"{path} holds no supported model: neither config.json with model.safetensors "
            "nor ..._vision.npz with ..._text.npz"
        )
    model, variant, origin = read_model(path) if is_transformers else read_pair(path)
    tokenizer, tokenizer_path = read_tokenizer(path, vocab_size=model.text_model.config.vocab_size)
    files = origin["files"]
    assert isinstance(files, dict)
    files.update(digests([tokenizer_path]))
    origin["lower_case"] = f"{lowered(tokenizer)}, by {tokenizer_path.name}"
    heads = None
    if dense is not None:
        heads, origin["dense"] = _read_dense(dense, model)
    return Checkpoint(model=model, dense=heads, tokenizer=tokenizer, variant=variant, origin=origin)


def _read_dense(
    path: Path, model: Tipsv2Model
) -> tuple[Tipsv2DptForDensePrediction, dict[str, JsonValue]]:
    if not path.is_dir():
        raise CheckpointError(f"{path} is not a folder; name the folder that holds the dense heads")
    refuse_pickles(path)
    if is_transformers_folder(path):
        return read_dense_folder(path, model)
    raise CheckpointError(
        f"{path} holds no dense heads; name a -dpt folder, with config.json and model.safetensors"
    )
