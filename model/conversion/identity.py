"""What a package is made of, as a key: what has the same content has the same key."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pydantic import JsonValue

from model.conversion.cache import KEY_DIGITS
from model.conversion.errors import SourceError
from model.graphs import Precision
from model.package_check import sha256

# Part of every key. Increased when the same checkpoint is exported to another package.
EXPORT_FORMAT: Final = 1
# What a checkpoint is read from; cards and images beside it change nothing.
READ_SUFFIXES: Final = frozenset({".json", ".model", ".npz", ".safetensors", ".txt", ".zip"})
WEIGHT_SUFFIXES: Final = frozenset({".npz", ".safetensors", ".zip"})


def content_of(path: Path) -> dict[str, JsonValue]:
    """The identity of a checkpoint on this machine: SHA-256 and size of each of its files.

    Args:
        path: A folder, or a file.

    Raises:
        SourceError: A file cannot be read.
    """
    try:
        return {
            file.name: {"sha256": sha256(file), "size_bytes": file.stat().st_size}
            for file in read_files(path)
        }
    except OSError as error:
        raise SourceError(f"{error.filename} cannot be read ({error.strerror})") from error


def key_of(base: JsonValue, dense: JsonValue, precisions: Sequence[Precision]) -> str:
    """The key of a package.

    Args:
        base: Identity of the model.
        dense: Identity of the dense heads; None without.
        precisions: Of the graphs.
    """
    made_of = {
        "format": EXPORT_FORMAT,
        "base": base,
        "dense": dense,
        "precisions": sorted(precisions),
    }
    text = json.dumps(made_of, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_DIGITS]


def weight_bytes(path: Path) -> int:
    """Size of the weights of a checkpoint."""
    files = [file for file in read_files(path) if file.suffix in WEIGHT_SUFFIXES]
    return sum(file.stat().st_size for file in files)


def read_files(path: Path) -> list[Path]:
    """The files that a checkpoint may be read from."""
    if path.is_file():
        return [path]
    files = (file for file in path.iterdir() if file.suffix in READ_SUFFIXES)
    return sorted(file for file in files if file.is_file())
