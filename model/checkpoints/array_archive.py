"""Read untrusted zips of NumPy arrays (.npz), one array at a time.

`np.load` unpacks an array before its size and type can be checked. Here all shapes, types and sizes
are checked from the headers first. Pickles, and content that is larger than its header or than any
model, are refused.
"""

import math
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

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
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    ArithmeticError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True, slots=True)
class _Member:
    info: zipfile.ZipInfo
    shape: tuple[int, ...]


class ArrayArchive:
    """An open archive.

    Attributes:
        path: The file.
        shapes: Shapes of the arrays by name, without `.npy`.
    """

    def __init__(self, path: Path) -> None:
        """Open an archive and read its headers.

        Raises:
            CheckpointError: The file is not a safe archive of float arrays.
        """
        self.path = path
        with self._explained("is not a zip of arrays or is cut off"):
            self._zip = zipfile.ZipFile(path)
        try:
            self._members = self._read_members()
        except BaseException:
            self._zip.close()
            raise
        self.shapes = {name: member.shape for name, member in self._members.items()}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    def read(self, name: str) -> Tensor:
        """Unpack one array as float32; large values become infinite.

        Raises:
            CheckpointError: The bytes are damaged.
        """
        member = self._members[name]
        with self._explained(f"is damaged at {name!r}"), self._zip.open(member.info) as file:
            array = npy.read_array(file, allow_pickle=False, max_header_size=MAX_HEADER_BYTES)
            # Reading to the end makes zipfile compare the checksum.
            leftover = file.read(1)
        assert not leftover, "the header's size was compared with the member's"
        with np.errstate(over="ignore"):
            single = np.ascontiguousarray(array, dtype=np.float32)
        return torch.from_numpy(single).reshape(member.shape)

    def _read_members(self) -> dict[str, _Member]:
        infos = [info for info in self._zip.infolist() if not info.filename.endswith("/")]
        num_bytes = sum(info.file_size for info in infos)
        allowed = min(MAX_ARCHIVE_BYTES, MAX_EXPANSION * (self.path.stat().st_size + 1024))
        if num_bytes > allowed:
            raise self._error(f"would unpack to {num_bytes} bytes, at most {allowed} are allowed")
        members: dict[str, _Member] = {}
        for info in infos:
            name = info.filename.removesuffix(".npy")
            if name == info.filename:
                raise self._error(f"holds {name!r}, which is not a .npy array")
            if name in members:
                raise self._error(f"has {name!r} twice")
            members[name] = self._read_header(info, name)
        if not members:
            raise self._error("holds no arrays")
        return members

    def _read_header(self, info: zipfile.ZipInfo, name: str) -> _Member:
        with self._explained(f"has no readable array at {name!r}"), self._zip.open(info) as file:
            shape, dtype, header_bytes = _parse_header(file)
        if dtype.kind != "f":
            raise self._error(f"holds {dtype.name} at {name!r}, and weights are floating-point")
        if header_bytes + math.prod(shape) * dtype.itemsize != info.file_size:
            raise self._error(
                f"holds {info.file_size} bytes at {name!r}, which does not fit its header {shape} "
                f"of {dtype.name}"
            )
        return _Member(info, shape)

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """Turn the errors of damaged bytes into one that names the file."""
        try:
            yield
        except DAMAGE as error:
            raise self._error(f"{what} ({error})") from error

    def _error(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"{self.path} {what}; use the file as it was released: download it again, or copy it "
            "again from where it was trained"
        )


def _parse_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype, int]:
    version = npy.read_magic(file)
    if version == (1, 0):
        shape, _, dtype = npy.read_array_header_1_0(file, max_header_size=MAX_HEADER_BYTES)
    elif version == (2, 0):
        shape, _, dtype = npy.read_array_header_2_0(file, max_header_size=MAX_HEADER_BYTES)
    else:
        raise ValueError(f"an unknown version of .npy: {version}")
    return shape, dtype, file.tell()


def require(archive: ArrayArchive, name: str, ndim: int) -> tuple[int, ...]:
    """Shape of an array that must exist.

    Raises:
        CheckpointError: The array is missing, or has another number of axes.
    """
    shape = archive.shapes.get(name)
    if shape is None:
        raise CheckpointError(
            f"{archive.path} lacks {name!r} and has {name_some(archive.shapes)}; it is not of the "
            "official layout, or incomplete: use the file as it was released"
        )
    if len(shape) != ndim or 0 in shape:
        raise CheckpointError(
            f"{archive.path} has {name!r} with shape {shape}, not with {ndim} axes; use the file "
            "as it was released"
        )
    return shape
