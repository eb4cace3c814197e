"""Inputs of a bulk job: finds files, tables and shards, splits them into parts, and reads them.

An input is a path, or a URL of an object store such as `s3://bucket/photos`. The same inputs always
give the same parts. A part is computed, written and resumed as a whole: some hundred images, rows
of a Parquet file, or one WebDataset shard.
"""

import glob
import hashlib
import os
import stat
import tarfile
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import IO, Any, Final, Literal

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from model.stores import is_url
from tipserve_cli.bulk.stores import (
    StoreFailed,
    matching_objects,
    objects_below,
    opened_object,
    read_object,
)
from tipserve_cli.engines.engine import UserError

Kind = Literal["files", "parquet", "tar"]
IMAGES: Final = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic")
SUFFIXES: Final = {"parquet": (".parquet",), "tar": (".tar",), "files": IMAGES}
# Larger files are skipped without reading them: they exceed every limit of the service.
MAX_FILE_BYTES: Final = 256 * 1024 * 1024
ROWS_AT_ONCE: Final = 64
# A store answers in tens of milliseconds, so one object at a time would leave the engine idle.
OBJECTS_AT_ONCE: Final = 16
TOO_LARGE: Final = f"The file is larger than {MAX_FILE_BYTES} bytes."


class InputError(UserError):
    """An input is missing or invalid."""


class UnusableFile(Exception):
    """A file that is skipped without reading it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A unit of computing and writing.

    Attributes:
        number: From 0.
        kind: Of `paths`: images, one Parquet file, or one shard.
        paths: Paths or URLs, as given on the command line, or below a folder given there.
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
        named: Files, folders, patterns, each a path or a URL, or `-` for those in `lines`.
        lines: One path or URL each.
        part_items: Images of a part.

    Raises:
        InputError: An input is missing, or the inputs are of several kinds.
        StoreFailed: A store cannot be read.
    """
    found: list[tuple[str, int]] = []
    for name in named:
        listed = (line.rstrip("\r\n") for line in lines) if name == "-" else [name]
        found += [one for line in listed if line for one in _expand(line)]
    paths = [path for path, _ in found]
    if not paths:
        raise InputError(f"No images found in {', '.join(named)}.")
    kinds = {_kind(path) for path in paths}
    if len(kinds) > 1:
        raise InputError("Give images, Parquet files or shards, not several kinds at once.")
    (kind,) = kinds
    digest = hashlib.sha256(f"{kind}\n".encode())
    for path, size in found:
        digest.update(f"{size} {path}\n".encode("utf-8", "surrogateescape"))
    parts = tuple(_split(kind, paths, part_items))
    sizes = {"files": len(paths), "parquet": sum(part.stop - part.start for part in parts)}
    return Inputs(parts=parts, num_images=sizes.get(kind), digest=digest.hexdigest())


def _expand(name: str) -> list[tuple[str, int]]:
    """Paths or URLs, and their bytes."""
    matching = matching_objects(name) if is_url(name) else _matching_paths(name)
    if not matching:
        raise InputError(
            f"{name} does not exist; give files, folders, patterns, or - for a list of paths."
        )
    return [
        one
        for place, size in matching
        for one in (_in_folder(place) if size is None else [(place, size)])
    ]


def _matching_paths(name: str) -> list[tuple[str, int | None]]:
    """Paths and their bytes, in order; a folder has no bytes."""
    is_there = os.path.isdir(name) or os.path.isfile(name)
    is_pattern = not is_there and glob.has_magic(name)
    found = sorted(glob.glob(name, recursive=True)) if is_pattern else [name] * is_there
    return [(path, None if os.path.isdir(path) else _size(path)) for path in found]


def _size(path: str) -> int:
    """File size in bytes; -1 for a broken link, which is skipped later when it is read."""
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def _in_folder(folder: str) -> list[tuple[str, int]]:
    """All images below a folder; if there are none, its Parquet files; else its shards."""
    sizes = objects_below(folder) if is_url(folder) else _files_below(folder)
    by_kind: dict[str, list[str]] = {"files": [], "parquet": [], "tar": []}
    for name in sizes:
        if any(part.startswith((".", "_")) for part in name.split("/")):
            continue
        for kind, suffixes in SUFFIXES.items():
            if name.lower().endswith(suffixes):
                by_kind[kind].append(name)
    chosen = by_kind["files"] or by_kind["parquet"] or by_kind["tar"]
    return [(os.path.join(folder, name), sizes[name]) for name in chosen]


def _files_below(folder: str) -> dict[str, int]:
    """Bytes of all files below a folder, by their names in it, in order."""
    start, sizes = len(os.path.join(folder, "")), {}
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith((".", "_")))
        for path in (os.path.join(place, name) for name in sorted(names)):
            sizes[path[start:]] = _size(path)
    return sizes


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
        with _opened(path) as file:
            return int(pq.read_metadata(file).num_rows)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as Parquet.") from error


@contextmanager
def _opened(path: str) -> Iterator[IO[bytes]]:
    """Open a file or an object for reading anywhere in it."""
    with opened_object(path) if is_url(path) else open(path, "rb") as file:
        yield file


def read_part(part: Part, columns: Columns) -> Generator[InputImage]:
    """Read the images of a part, always in the same order.

    A caller that may stop early closes the generator: it may hold threads.

    Raises:
        InputError: A column is missing from a Parquet file.
        StoreFailed: A store cannot be read.
    """
    if part.kind == "files":
        for is_remote, group in groupby(part.paths, is_url):
            paths = list(group)
            yield from _read_objects(paths) if is_remote else map(_read_file, paths)
    elif part.kind == "parquet":
        yield from _read_rows(part, columns)
    else:
        yield from _read_shard(part.paths[0])


def _read_objects(urls: Sequence[str]) -> Iterator[InputImage]:
    with ThreadPoolExecutor(OBJECTS_AT_ONCE, "object") as pool:
        for start in range(0, len(urls), OBJECTS_AT_ONCE):
            yield from pool.map(_read_file, urls[start : start + OBJECTS_AT_ONCE])


def _read_file(path: str) -> InputImage:
    try:
        data = read_object(path) if is_url(path) else _read_path(path)
    except UnusableFile as error:
        return InputImage(key=path, source=path, problem=str(error))
    except OSError as error:
        reason = error.strerror or "there is no such object"
        return InputImage(key=path, source=path, problem=f"The file cannot be read: {reason}.")
    if len(data) > MAX_FILE_BYTES:
        return InputImage(key=path, source=path, problem=TOO_LARGE)
    return InputImage(key=path, source=path, data=data)


def _read_path(path: str) -> bytes:
    facts = os.stat(path)
    # Opening a pipe without a writer would block for ever.
    if not stat.S_ISREG(facts.st_mode):
        raise UnusableFile("This is not a regular file.")
    if facts.st_size > MAX_FILE_BYTES:
        raise UnusableFile(TOO_LARGE)
    return Path(path).read_bytes()


def _read_rows(part: Part, columns: Columns) -> Iterator[InputImage]:
    (path,) = part.paths
    with _opened(path) as opened, pq.ParquetFile(opened) as file:
        yield from _read_table(file, part, columns)


def _read_table(file: pq.ParquetFile, part: Part, columns: Columns) -> Iterator[InputImage]:
    (path,) = part.paths
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
        if value.startswith(("http://", "https://")):
            problem = "Images are not downloaded from web servers."
            return InputImage(key=key, source=source, problem=problem)
        place = value if is_url(value) else os.path.join(os.path.dirname(source), value)
        return replace(_read_file(place), key=key, source=source)
    return InputImage(key=key, source=source, problem="The row contains neither bytes nor a path.")


def _read_shard(path: str) -> Iterator[InputImage]:
    """Read a WebDataset shard: adjacent files form a sample if they agree up to the first dot."""
    key, data = None, None
    try:
        with _opened(path) as file, _open_shard(file) as (shard, num_bytes):
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
            if 0 < num_bytes - shard.offset < tarfile.BLOCKSIZE:
                raise EOFError
    except (OSError, tarfile.TarError, EOFError) as error:
        if isinstance(error, OSError) and is_url(path):
            raise StoreFailed(f"{path}: {type(error).__name__}: {error}") from error
        if key is not None and data is not None:
            yield _from_sample(key, data, path)
        yield InputImage(
            key=f"{path}:end", source=path, problem="The shard is damaged from here on."
        )
        return
    if key is not None:
        yield _from_sample(key, data, path)


@contextmanager
def _open_shard(file: IO[bytes]) -> Iterator[tuple[tarfile.TarFile, int]]:
    """The members of a shard, read one after the other, and its bytes."""
    num_bytes = file.seek(0, os.SEEK_END)
    file.seek(0)
    with tarfile.open(fileobj=file, mode="r|") as shard:
        yield shard, num_bytes


def _member(shard: tarfile.TarFile, member: tarfile.TarInfo) -> bytes | None:
    if member.size > MAX_FILE_BYTES:
        return None
    stream = shard.extractfile(member)
    return None if stream is None else stream.read()


def _from_sample(key: str, data: bytes | None, path: str) -> InputImage:
    problem = "" if data is not None else "The sample contains no image."
    return InputImage(key=key, source=path, data=data, problem=problem)
