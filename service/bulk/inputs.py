"""Inputs of a bulk job: files, tables and shards in parts, and how they are read."""

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

# Splits what was named on a command line into parts, always the same ones for the same inputs.
#
# A part is what is computed, written and resumed as a whole: some hundred images, rows of a Parquet
# file, or one WebDataset shard.

IMAGES: Final = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
SUFFIXES: Final = {"parquet": (".parquet",), "tar": (".tar",), "files": IMAGES}
Kind = Literal["files", "parquet", "tar"]


class InputError(UserError):
    """What was named cannot be embedded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What is computed and written as a whole.

    Attributes:
        number: From 0.
        kind: What `paths` are: images, one Parquet file, or one shard.
        paths: As they were named.
        start: First row of a Parquet file.
        stop: The row behind the last.
    """

    number: int
    kind: Kind
    paths: tuple[str, ...]
    start: int = 0
    stop: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """All parts.

    Attributes:
        parts: In order.
        num_items: Images in them; None where only reading them would tell.
        digest: Of paths and sizes: other inputs have another.
    """

    parts: tuple[Part, ...]
    num_items: int | None
    digest: str


def find_inputs(named: Sequence[str], lines: Iterable[str], part_items: int) -> Inputs:
    """Find everything that was named.

    Args:
        named: Files, folders, patterns, and `-` for what `lines` names.
        lines: One path each.
        part_items: Images of one part.

    Raises:
        InputError: Something is not there, or what is there does not fit together.
    """
    paths: list[str] = []
    for name in named:
        if name == "-":
            listed = (line.rstrip("\r\n") for line in lines)
            paths += [path for line in listed if line for path in _expand(line)]
        else:
            paths += _expand(name)
    if not paths:
        raise InputError(f"There are no images in {', '.join(named)}.")
    kinds = {_kind(path) for path in paths}
    if len(kinds) > 1:
        raise InputError("Name images, Parquet files or shards, but not several kinds at once.")
    (kind,) = kinds
    digest = hashlib.sha256(f"{kind}\n".encode())
    for path in paths:
        digest.update(f"{_size(path)} {path}\n".encode("utf-8", "surrogateescape"))
    parts = tuple(_split(kind, paths, part_items))
    sizes = {"files": len(paths), "parquet": sum(part.stop - part.start for part in parts)}
    return Inputs(parts=parts, num_items=sizes.get(kind), digest=digest.hexdigest())


def _expand(name: str) -> list[str]:
    if os.path.isdir(name):
        return _in_folder(name)
    if os.path.isfile(name):
        return [name]
    found = sorted(glob.glob(name, recursive=True)) if glob.has_magic(name) else []
    if not found:
        raise InputError(f"There is no {name}; name files, folders, patterns, or - for a list.")
    return [path for one in found for path in (_in_folder(one) if os.path.isdir(one) else [one])]


def _size(path: str) -> int:
    """In bytes; -1 of a link that leads nowhere, which reading tells as a bad item."""
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def _in_folder(folder: str) -> list[str]:
    """Its images, below it too; Parquet files or shards where it has no images."""
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


# Reads a part's images, one by one; what cannot be read is told, not raised.

# No service takes images of this size; a file of it is not even read.
MAX_FILE_BYTES: Final = 256 * 1024 * 1024
ROWS_AT_ONCE: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Which columns of a Parquet file are read.

    Attributes:
        image: Encoded images, paths, or structs with the fields `bytes` and `path`.
        key: What rows are called in the output; None is file and row number.
    """

    image: str = "image"
    key: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One image.

    Attributes:
        key: What its row is called.
        source: The file that it was in.
        data: As it is encoded, or scaled pixels; None where it cannot be used.
        problem: Why not.
        code: The same as a short stable name.
        size_hw: Its own height and width, upright; None where `data` tells them.
    """

    key: str
    source: str
    data: bytes | NDArray[np.uint8] | None = None
    problem: str = ""
    code: str = "unreadable"
    size_hw: tuple[int, int] | None = None


def read_part(part: Part, columns: Columns) -> Iterator[Item]:
    """The items of a part, always in the same order.

    Raises:
        InputError: A Parquet file has no such columns.
    """
    if part.kind == "files":
        for path in part.paths:
            yield _read_file(path, path)
    elif part.kind == "parquet":
        yield from _read_rows(part, columns)
    else:
        yield from _read_shard(part.paths[0])


def _read_file(path: str, key: str) -> Item:
    try:
        facts = os.stat(path)
        # A pipe without a writer would be waited for without end.
        if not stat.S_ISREG(facts.st_mode):
            return Item(key=key, source=path, problem="This is no file, but a pipe or the like.")
        if facts.st_size > MAX_FILE_BYTES:
            return Item(key=key, source=path, problem="The file is too large for an image.")
        return Item(key=key, source=path, data=Path(path).read_bytes())
    except OSError as error:
        return Item(key=key, source=path, problem=f"The file cannot be read: {error.strerror}.")


def _read_rows(part: Part, columns: Columns) -> Iterator[Item]:
    path = part.paths[0]
    file = pq.ParquetFile(path)
    wanted = [name for name in (columns.image, columns.key) if name is not None]
    missing = [name for name in wanted if name not in file.schema_arrow.names]
    if missing:
        raise InputError(
            f"{path} has no column {missing[0]!r} but {', '.join(file.schema_arrow.names)}; "
            "name the right one by --image-column or --key-column."
        )
    row, groups = _groups(file, part)
    for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=groups, columns=wanted):
        for values in batch.to_pylist():
            if part.start <= row < part.stop:
                key = f"{path}:{row}" if columns.key is None else str(values[columns.key])
                yield _from_value(values[columns.image], key, path)
            row += 1


def _groups(file: pq.ParquetFile, part: Part) -> tuple[int, list[int]]:
    """The row groups that hold the part's rows, and the number of their first row."""
    first, row = 0, 0
    groups: list[int] = []
    for index in range(file.num_row_groups):
        size = file.metadata.row_group(index).num_rows
        if row < part.stop and row + size > part.start:
            first = first if groups else row
            groups.append(index)
        row += size
    return first, groups


def _from_value(value: Any, key: str, source: str) -> Item:
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return Item(key=key, source=source, data=value)
    if isinstance(value, str):
        read = _read_file(os.path.join(os.path.dirname(source), value), key)
        return Item(key=key, source=source, data=read.data, problem=read.problem)
    return Item(key=key, source=source, problem="The row holds neither bytes nor a path.")


def _read_shard(path: str) -> Iterator[Item]:
    """Samples of a WebDataset shard: neighbours of one name up to the first dot."""
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
            # A header that breaks off looks like the end to tarfile.
            if 0 < os.path.getsize(path) - shard.offset < tarfile.BLOCKSIZE:
                raise EOFError
    except (OSError, tarfile.TarError, EOFError):
        if key is not None and data is not None:
            yield _from_sample(key, data, path)
        yield Item(key=f"{path}:end", source=path, problem="The shard is broken from here on.")
        return
    if key is not None:
        yield _from_sample(key, data, path)


def _member(shard: tarfile.TarFile, member: tarfile.TarInfo) -> bytes | None:
    if member.size > MAX_FILE_BYTES:
        return None
    stream = shard.extractfile(member)
    return None if stream is None else stream.read()


def _from_sample(key: str, data: bytes | None, path: str) -> Item:
    problem = "" if data is not None else "The sample holds no image."
    return Item(key=key, source=path, data=data, problem=problem)
