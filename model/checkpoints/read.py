"""Reads any checkpoint that people have: recognises its kind, verifies it, and gives one result."""

from pathlib import Path

from model.checkpoints.checkpoint import Checkpoint, CheckpointError
from model.checkpoints.folder import digests, refuse_pickles
from model.checkpoints.official_pair import is_pair_folder, read_pair
from model.checkpoints.tokenizer import read_tokenizer
from model.checkpoints.transformers_folder import is_transformers_folder, read_model


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a model and its tokenizer; nothing is downloaded.

    Args:
        path: A folder: of transformers (`config.json`, safetensors, tokenizer), or with the
            official pair (`..._vision.npz`, `..._text.npz`) and a tokenizer.

    Raises:
        CheckpointError: It is no such folder, or not all of it is what it should be.
    """
    if not path.is_dir():
        raise CheckpointError(
            f"{path} is no folder; name the folder that holds a model's weights and tokenizer"
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
            f"{path} holds no model that can be read: neither config.json with model.safetensors "
            "nor ..._vision.npz with ..._text.npz"
        )
    model, variant, origin = read_model(path) if is_transformers else read_pair(path)
    tokenizer, tokenizer_path = read_tokenizer(path, vocab_size=model.text_model.config.vocab_size)
    files = origin["files"]
    assert isinstance(files, dict)
    files.update(digests([tokenizer_path]))
    return Checkpoint(model=model, tokenizer=tokenizer, variant=variant, origin=origin)
