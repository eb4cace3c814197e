"""Inputs of a bulk job: finds files, tables and shards, splits them into parts, and reads them.

The same inputs always give the same parts. A part is computed, written and resumed as a whole: some
hundred images, rows of a Parquet file, or one WebDataset shard.
"""

import glob
import hashlib
import os
import stat
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from service.engines.engine import UserError

Kind = Literal["files", "parquet", "tar"]
IMAGES: Final = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic")
SUFFIXES: Final = {"parquet": (".parquet",), "tar": (".tar",), "files": IMAGES}
# Larger files are skipped without reading them: they exceed every limit of the service.
MAX_FILE_BYTES: Final = 256 * 1024 * 1024
ROWS_AT_ONCE: Final = 64


class InputError(UserError):
    """An input is missing or invalid."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A unit of computing and writing.

    Attributes:
        number: From 0.
        kind: Of `paths`: images, one Parquet file, or one shard.
        paths: As given on the command line, or below a folder given there.
        start: First row of a Parquet file.
        stop: The row after the last one.
    """

    number: int
    kind: Kind
    paths: tuple[str, ...]
    start: int = 0
    stop: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """All inputs of a job.

    Attributes:
        parts: In order.
        num_images: Number of images; None for shards, which would have to be read.
        digest: Hash of paths and file sizes, to detect changed inputs.
    """

    parts: tuple[Part, ...]
    num_images: int | None
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """The columns of a Parquet file that are read.

    Attributes:
        image: Encoded images, paths, or structs with the fields `bytes` and `path`.
        key: Becomes the key in the output; None is file name and row number.
    """

    image: str = "image"
    key: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class InputImage:
    """An image that was read, or the reason why it cannot be.

    Attributes:
        key: Key of its row.
        source: The file that contains it.
        data: Encoded bytes, or resized pixels; None if it cannot be read.
        problem: Why it cannot be read.
        code: Short stable name of the problem.
        size_hw: Original height and width after EXIF rotation; None if `data` is encoded.
    """

    key: str
    source: str
    data: bytes | NDArray[np.uint8] | None = None
    problem: str = ""
    code: str = "unreadable"
    size_hw: tuple[int, int] | None = None


def find_inputs(named: Sequence[str], lines: Iterable[str], part_items: int) -> Inputs:
    """Find all inputs and split them into parts.

    Args:
        named: Files, folders, patterns, or `-` for the paths in `lines`.
        lines: One path each.
        part_items: Images of a part.

    Raises:
        InputError: An input is missing, or the inputs are of several kinds.
    """
    paths: list[str] = []
    for name in named:
        if name == "-":
            listed = (line.rstrip("\r\n") for line in lines)
            paths += [path for line in listed if line for path in _expand(line)]
        else:
            paths += _expand(name)
    if not paths:
        raise InputError(f"No images found in {', '.join(named)}.")
    kinds = {_kind(path) for path in paths}
    if len(kinds) > 1:
        raise InputError("Give images, Parquet files or shards, not several kinds at once.")
    (kind,) = kinds
    digest = hashlib.sha256(f"{kind}\n".encode())
    for path in paths:
        digest.update(f"{_size(path)} {path}\n".encode("utf-8", "surrogateescape"))
    parts = tuple(_split(kind, paths, part_items))
    sizes = {"files": len(paths), "parquet": sum(part.stop - part.start for part in parts)}
    return Inputs(parts=parts, num_images=sizes.get(kind), digest=digest.hexdigest())


def _expand(name: str) -> list[str]:
    if os.path.isdir(name):
        return _in_folder(name)
    if os.path.isfile(name):
        return [name]
    found = sorted(glob.glob(name, recursive=True)) if glob.has_magic(name) else []
    if not found:
        raise InputError(
            f"{name} does not exist; give files, folders, patterns, or - for a list of paths."
        )
    return [path for one in found for path in (_in_folder(one) if os.path.isdir(one) else [one])]


def _size(path: str) -> int:
    """File size in bytes; -1 for a broken link, which is skipped later when it is read."""
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def _in_folder(folder: str) -> list[str]:
    """All images below a folder; if there are none, its Parquet files; else its shards."""
    by_kind: dict[str, list[str]] = {"files": [], "parquet": [], "tar": []}
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith((".", "_")))
        for name in sorted(names):
            if name.startswith((".", "_")):
                continue
            for kind, suffixes in SUFFIXES.items():
                if name.lower().endswith(suffixes):
                    by_kind[kind].append(os.path.join(place, name))
    return by_kind["files"] or by_kind["parquet"] or by_kind["tar"]


def _kind(path: str) -> Kind:
    suffix = Path(path).suffix.lower()
    if suffix == ".parquet":
        return "parquet"
    return "tar" if suffix == ".tar" else "files"


def _split(kind: Kind, paths: Sequence[str], part_items: int) -> Iterator[Part]:
    if kind == "tar":
        for number, path in enumerate(paths):
            yield Part(number=number, kind=kind, paths=(path,))
    elif kind == "files":
        for number, start in enumerate(range(0, len(paths), part_items)):
            chosen = tuple(paths[start : start + part_items])
            yield Part(number=number, kind=kind, paths=chosen)
    else:
        ranges = (
            (path, start, min(start + part_items, total))
            for path in paths
            for total in [_num_rows(path)]
            for start in range(0, total, part_items)
        )
        for number, (path, start, stop) in enumerate(ranges):
            yield Part(number=number, kind=kind, paths=(path,), start=start, stop=stop)


def _num_rows(path: str) -> int:
    try:
        return int(pq.read_metadata(path).num_rows)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as Parquet.") from error


def read_part(part: Part, columns: Columns) -> Iterator[InputImage]:
    """Read the images of a part, always in the same order.

    Raises:
        InputError: A column is missing from a Parquet file.
    """
    if part.kind == "files":
        for path in part.paths:
            yield _read_file(path, path)
    elif part.kind == "parquet":
        yield from _read_rows(part, columns)
    else:
        yield from _read_shard(part.paths[0])


def _read_file(path: str, key: str) -> InputImage:
    try:
        facts = os.stat(path)
        # Opening a pipe without a writer would block for ever.
        if not stat.S_ISREG(facts.st_mode):
            return InputImage(key=key, source=path, problem="This is not a regular file.")
        if facts.st_size > MAX_FILE_BYTES:
            return InputImage(
                key=key, source=path, problem=f"The file is larger than {MAX_FILE_BYTES} bytes."
            )
        return InputImage(key=key, source=path, data=Path(path).read_bytes())
    except OSError as error:
        return InputImage(
            key=key, source=path, problem=f"The file cannot be read: {error.strerror}."
        )


def _read_rows(part: Part, columns: Columns) -> Iterator[InputImage]:
    path = part.paths[0]
    file = pq.ParquetFile(path)
    wanted = [name for name in (columns.image, columns.key) if name is not None]
    missing = [name for name in wanted if name not in file.schema_arrow.names]
    if missing:
        raise InputError(
            f"{path} has no column {missing[0]!r}. Use --image-column or --key-column with one of "
            f"{', '.join(file.schema_arrow.names)}."
        )
    row, groups = _groups(file, part)
    for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=groups, columns=wanted):
        for values in batch.to_pylist():
            if part.start <= row < part.stop:
                key = f"{path}:{row}" if columns.key is None else str(values[columns.key])
                yield _from_value(values[columns.image], key, path)
            row += 1


def _groups(file: pq.ParquetFile, part: Part) -> tuple[int, list[int]]:
    """The row groups with rows of the part, and the number of their first row."""
    first, row = 0, 0
    groups: list[int] = []
    for index in range(file.num_row_groups):
        size = file.metadata.row_group(index).num_rows
        if row < part.stop and row + size > part.start:
            first = first if groups else row
            groups.append(index)
        row += size
    return first, groups


def _from_value(value: Any, key: str, source: str) -> InputImage:
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return InputImage(key=key, source=source, data=value)
    if isinstance(value, str):
        read = _read_file(os.path.join(os.path.dirname(source), value), key)
        return InputImage(key=key, source=source, data=read.data, problem=read.problem)
    return InputImage(key=key, source=source, problem="The row contains neither bytes nor a path.")


def _read_shard(path: str) -> Iterator[InputImage]:
    """Read a WebDataset shard: adjacent files form a sample if they agree up to the first dot."""
    key, data = None, None
    try:
        with tarfile.open(path, "r|") as shard:
            for member in shard:
                if not member.isfile():
                    continue
                folder, _, name = member.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                sample = f"{folder}/{stem}" if folder else stem
                if sample != key:
                    if key is not None:
                        yield _from_sample(key, data, path)
                    key, data = sample, None
                if data is None and f".{suffix}".lower().endswith(IMAGES):
                    data = _member(shard, member)
            # tarfile takes a truncated header for the end of the archive.
            if 0 < os.path.getsize(path) - shard.offset < tarfile.BLOCKSIZE:
                raise EOFError
    except (OSError, tarfile.TarError, EOFError):
        if key is not None and data is not None:
            yield _from_sample(key, data, path)
        yield InputImage(
            key=f"{path}:end", source=path, problem="The shard is damaged from here on."
        )
        return
    if key is not None:
        yield _from_sample(key, data, path)


def _member(shard: tarfile.TarFile, member: tarfile.TarInfo) -> bytes | None:
    if member.size > MAX_FILE_BYTES:
        return None
    stream = shard.extractfile(member)
    return None if stream is None else stream.read()


def _from_sample(key: str, data: bytes | None, path: str) -> InputImage:
    problem = "" if data is not None else "The sample contains no image."
    return InputImage(key=key, source=path, data=data, problem=problem)
