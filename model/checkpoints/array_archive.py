"""Read untrusted zips of NumPy arrays (.npz, and Scenic's .zip), one array at a time.

`np.load` unpacks an array before its size and type can be checked. Here all names, shapes, types
and sizes are checked from the headers first. Pickles, paths out of the archive, and content that is
larger than its header or than any model are refused.
"""

import math
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
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
DOWNLOAD_AGAIN = "download it again, or copy it again from where it was trained"


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
        try:
            self._zip = zipfile.ZipFile(path)
        except DAMAGE as error:
            raise CheckpointError(
                f"{path} is not a zip of arrays or is cut off ({error}); {DOWNLOAD_AGAIN}"
            ) from error
        try:
            self._members = self._read_members()
        except BaseException:
            self._zip.close()
            raise
        self.shapes = {name: member.shape for name, member in self._members.items()}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._zip.close()

    def read(self, name: str) -> Tensor:
        """Unpack one array as float32.

        Raises:
            CheckpointError: The bytes are damaged, or a value is not finite in float32.
        """
        member = self._members[name]
        try:
            with self._zip.open(member.info) as file:
                array = npy.read_array(file, allow_pickle=False, max_header_size=MAX_HEADER_BYTES)
                # Reading to the end makes zipfile compare the checksum.
                leftover = file.read(1)
        except DAMAGE as error:
            raise CheckpointError(
                f"{self.path} is damaged at {name!r} ({error}); {DOWNLOAD_AGAIN}"
            ) from error
        assert not leftover, "the header's size was compared with the member's"
        with np.errstate(over="ignore"):
            single = np.ascontiguousarray(array, dtype=np.float32)
        tensor = torch.from_numpy(single).reshape(member.shape)
        if not torch.isfinite(tensor).all():
            raise CheckpointError(
                f"{self.path} has NaN or infinite values in {name!r}; {DOWNLOAD_AGAIN}"
            )
        return tensor

    def _read_members(self) -> dict[str, _Member]:
        infos = [info for info in self._zip.infolist() if not info.filename.endswith("/")]
        self._check_sizes(infos)
        members: dict[str, _Member] = {}
        for info in infos:
            name = self._array_name(info)
            if name in members:
                raise CheckpointError(f"{self.path} has {name!r} twice; {DOWNLOAD_AGAIN}")
            members[name] = self._read_header(info, name)
        if not members:
            raise CheckpointError(f"{self.path} holds no arrays; {DOWNLOAD_AGAIN}")
        return members

    def _check_sizes(self, infos: list[zipfile.ZipInfo]) -> None:
        num_bytes = sum(info.file_size for info in infos)
        allowed = min(MAX_ARCHIVE_BYTES, MAX_EXPANSION * (self.path.stat().st_size + 1024))
        if num_bytes > allowed:
            raise CheckpointError(
                f"{self.path} would unpack to {num_bytes} bytes, at most {allowed} are allowed for "
                "its size; use the file as it was released"
            )

    def _array_name(self, info: zipfile.ZipInfo) -> str:
        # On Windows zipfile turns a backslash into a slash, so both names are checked.
        original, path = info.orig_filename, PurePosixPath(info.filename)
        is_inside = not path.is_absolute() and ".." not in path.parts and "\\" not in original
        if not is_inside or ":" in original or "\0" in original:
            raise CheckpointError(
                f"{self.path} has a member {original!r} that leads out of the archive; "
                "use the file as it was released"
            )
        if info.flag_bits & 0x1:
            raise CheckpointError(f"{self.path} is encrypted; save it without a password")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise CheckpointError(
                f"{self.path} has an unsupported compression at {info.filename!r}; save it with "
                "np.savez or np.savez_compressed"
            )
        if path.suffix != ".npy":
            raise CheckpointError(
                f"{self.path} holds {info.filename!r}, which is not a .npy array; "
                "use the file as it was released"
            )
        return info.filename.removesuffix(".npy")

    def _read_header(self, info: zipfile.ZipInfo, name: str) -> _Member:
        try:
            with self._zip.open(info) as file:
                shape, dtype, header_bytes = _parse_header(file)
        except DAMAGE as error:
            raise CheckpointError(
                f"{self.path} has no readable array at {name!r} ({error}); {DOWNLOAD_AGAIN}"
            ) from error
        if dtype.hasobject:
            raise CheckpointError(
                f"{self.path} holds Python objects at {name!r}, which can run code when they are "
                "loaded; save plain float arrays"
            )
        if dtype.kind != "f":
            raise CheckpointError(
                f"{self.path} holds {dtype.name} at {name!r}, but weights must be floating-point; "
                "use the file as it was released"
            )
        if header_bytes + math.prod(shape) * dtype.itemsize != info.file_size:
            raise CheckpointError(
                f"{self.path} holds {info.file_size} bytes at {name!r}, which does not fit its "
                f"header {shape} of {dtype.name}; {DOWNLOAD_AGAIN}"
            )
        return _Member(info, shape)


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
