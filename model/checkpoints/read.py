"""Read a checkpoint of any supported layout, and verify it."""

from pathlib import Path

from model.checkpoints.checkpoint import Checkpoint, CheckpointError, digests, refuse_pickles
from model.checkpoints.official import is_pair_folder, read_pair
from model.checkpoints.tokenizer import lowered, read_tokenizer
from model.checkpoints.transformers_folder import CONFIG_FILE, read_dense, read_model
from model.graphs import DepthActivation


def read_checkpoint(
    path: Path, *, dense: Path | None = None, depth_activation: DepthActivation | None = None
) -> Checkpoint:
    """Read a model, its tokenizer and optionally its dense heads; nothing is downloaded.

    Args:
        path: A folder: of transformers (`config.json`, safetensors, tokenizer), or with the
            official pair (`..._vision.npz`, `..._text.npz`) and a tokenizer.
        dense: The dense heads: a -dpt folder of transformers.
        depth_activation: See `read_dense`.

    Raises:
        CheckpointError: The checkpoint is missing, incomplete or invalid.
    """
    for folder in (path, dense or path):
        if not folder.is_dir():
            raise CheckpointError(f"{folder} is not a folder; name that of a model or its heads")
        refuse_pickles(folder)
    is_transformers, is_pair = (path / CONFIG_FILE).is_file(), is_pair_folder(path)
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
        heads, origin["dense"] = read_dense(dense, model, depth_activation)
    return Checkpoint(model=model, dense=heads, tokenizer=tokenizer, variant=variant, origin=origin)
