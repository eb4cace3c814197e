"""Read untrusted zips of NumPy arrays (.npz).

Pickles are refused, and so is content that is larger than any model or that its size in the zip
does not explain.
"""

import struct
import zipfile
import zlib
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from model.checkpoints.checkpoint import CheckpointError

# The largest released file, g/14's vision tower, has 4.5 GB of float32.
MAX_ARCHIVE_BYTES: Final = 16 * 2**30
# Weights hardly compress; a zip bomb reaches a factor of 1000.
MAX_EXPANSION: Final = 50
MAX_HEADER_BYTES: Final = 10_000
# Exceptions that zipfile and NumPy raise for damaged bytes.
DAMAGE: Final = (
    *(zipfile.BadZipFile, zlib.error, struct.error, ArithmeticError, EOFError, LookupError),
    *(MemoryError, OSError, RuntimeError, SyntaxError, TypeError, ValueError),
)
Arrays = dict[str, Tensor]


def read_archive(path: Path) -> Arrays:
    """Read all arrays of a file: float32, by name without `.npy`; large float64 become infinite.

    Raises:
        CheckpointError: The file is damaged, or is no safe archive of float arrays.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _read_members(archive, path.stat().st_size)
    except DAMAGE as error:
        raise CheckpointError(
            f"{path} is damaged, or no zip of float arrays ({error}); use the file as it was "
            "released: download it again, or copy it again from where it was trained"
        ) from error


def _read_members(archive: zipfile.ZipFile, size_bytes: int) -> Arrays:
    infos = [info for info in archive.infolist() if not info.is_dir()]
    num_bytes = sum(info.file_size for info in infos)
    allowed = min(MAX_ARCHIVE_BYTES, MAX_EXPANSION * (size_bytes + 1024))
    if num_bytes > allowed:
        raise ValueError(f"it would unpack to {num_bytes} bytes, at most {allowed} are allowed")
    arrays: Arrays = {}
    for info in infos:
        name = info.filename.removesuffix(".npy")
        if name == info.filename or name in arrays:
            raise ValueError(f"{info.filename!r} is not a .npy array, or there twice")
        arrays[name] = _read_member(archive, info)
    if not arrays:
        raise ValueError("it holds no arrays")
    return arrays


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Tensor:
    with archive.open(info) as file:
        array = npy.read_array(file, allow_pickle=False, max_header_size=MAX_HEADER_BYTES)
        # Reading to the end makes zipfile compare the checksum.
        if file.read(1):
            raise ValueError(f"{info.filename!r} has more bytes than its array")
    if array.dtype.kind != "f":
        raise ValueError(f"{info.filename!r} holds {array.dtype.name}, and weights are floats")
    with np.errstate(over="ignore"):
        single = np.ascontiguousarray(array, dtype=np.float32)
    return torch.from_numpy(single).reshape(array.shape)
