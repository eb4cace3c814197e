"""Reads a part's images, one by one; what cannot be read is told, not raised."""

import os
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from service.bulk.parts import IMAGES, InputError, Part

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
