"""Read untrusted zips of NumPy arrays (.npz).

Pickles are refused, and so is content that is larger than any model or that its size in the zip
does not explain.
"""

import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from model.checkpoints.checkpoint import CheckpointError, name_some

# The largest released file, g/14's vision tower, has 4.5 GB of float32.
MAX_ARCHIVE_BYTES = 16 * 2**30
# Weights hardly compress; a zip bomb reaches a factor of 1000.
MAX_EXPANSION = 50
MAX_HEADER_BYTES = 10_000
# Exceptions that zipfile and NumPy raise for damaged bytes.
DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, struct.error, ArithmeticError, EOFError, LookupError),
    *(MemoryError, OSError, RuntimeError, SyntaxError, TypeError, ValueError),
)


@dataclass(frozen=True, slots=True, eq=False)
class ArrayArchive:
    """An archive in memory.

    Attributes:
        path: The file.
        arrays: float32, by name without `.npy`; large values of float64 become infinite.
    """

    path: Path
    arrays: Mapping[str, Tensor]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the arrays by name."""
        return {name: tuple(array.shape) for name, array in self.arrays.items()}


def read_archive(path: Path) -> ArrayArchive:
    """Read all arrays of a file.

    Raises:
        CheckpointError: The file is damaged, or is no safe archive of float arrays.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return ArrayArchive(path, _read_members(archive, path.stat().st_size))
    except DAMAGE as error:
        raise CheckpointError(
            f"{path} is damaged, or no zip of float arrays ({error}); use the file as it was "
            "released: download it again, or copy it again from where it was trained"
        ) from error


def _read_members(archive: zipfile.ZipFile, size_bytes: int) -> dict[str, Tensor]:
    infos = [info for info in archive.infolist() if not info.filename.endswith("/")]
    num_bytes = sum(info.file_size for info in infos)
    allowed = min(MAX_ARCHIVE_BYTES, MAX_EXPANSION * (size_bytes + 1024))
    if num_bytes > allowed:
        raise ValueError(f"it would unpack to {num_bytes} bytes, at most {allowed} are allowed")
    arrays: dict[str, Tensor] = {}
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


def require(archive: ArrayArchive, name: str, ndim: int) -> tuple[int, ...]:
    """Shape of an array that must exist.

    Raises:
        CheckpointError: The array is missing, or has another number of axes.
    """
    shape = archive.shapes.get(name)
    if shape is None:
        raise CheckpointError(
            f"{archive.path} lacks {name!r} and has {name_some(archive.arrays)}; it is not of the "
            "official layout, or incomplete: use the file as it was released"
        )
    if len(shape) != ndim or 0 in shape:
        raise CheckpointError(
            f"{archive.path} has {name!r} with shape {shape}, not with {ndim} axes; use the file "
            "as it was released"
        )
    return shape
