"""Looks into a checkpoint's folder: refuses pickles in it and notes the digests of what is read."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from model.checkpoints.checkpoint import CheckpointError, name_some

# What unpickles when it is loaded, and so runs the code of whoever wrote it.
PICKLE_SUFFIXES = frozenset({".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"})


def refuse_pickles(folder: Path) -> None:
    """Refuse a folder that holds a pickle, even one that nobody would open.

    Raises:
        CheckpointError: It does.
    """
    pickles = [path.name for path in folder.iterdir() if path.suffix.lower() in PICKLE_SUFFIXES]
    if pickles:
        raise CheckpointError(
            f"{folder} holds {name_some(pickles)}, and a pickle can run any program when it is "
            "loaded; take it away and keep the weights as safetensors or as the official .npz"
        )


def digests(paths: Iterable[Path]) -> dict[str, str]:
    """SHA-256 of files by their names."""
    found: dict[str, str] = {}
    for path in sorted(paths):
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
