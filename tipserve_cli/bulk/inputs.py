"""Inputs of a bulk job: finds files, tables and shards, splits them into parts, and reads them.

An input is a path, or a URL of an object store such as `s3://bucket/photos`. The same inputs always
give the same parts. A part is computed, written and resumed as a whole: some images, some rows of a
Parquet file, or one WebDataset shard.
"""

import glob
import hashlib
import os
import re
import tarfile
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from model.stores import is_url
from tipserve_cli.bulk.stores import explained, open_place
from tipserve_cli.engine import UserError

Kind = Literal["files", "parquet", "tar"]
IMAGES: Final = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic")
# Larger files are skipped without reading them: they exceed every limit of the service.
MAX_FILE_BYTES: Final = 256 * 1024 * 1024
ROWS_AT_ONCE: Final = 64


class Skipped(Exception):
    """An image that gets no row; `code` is a short stable name of the reason."""

    def __init__(self, reason: str, code: str = "unreadable") -> None:
        super().__init__(reason)
        self.code = code


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A unit of computing and writing.

    Attributes:
        number: From 0.
        paths: Images, one Parquet file or one shard: paths or URLs, as given on the command line,
            or below a folder given there.
        start: First row of a Parquet file.
        stop: The row after the last one.
    """

    number: int
    paths: tuple[str, ...]
    start: int = 0
    stop: int = 0

    @property
    def num_images(self) -> int | None:
        """Images of the part; None for a shard, which is not read before."""
        if _kind(self.paths[0]) == "tar":
            return None
        return self.stop - self.start or len(self.paths)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """All inputs of a job: their kind, parts in order, and a digest of paths and file sizes."""

    kind: Kind
    parts: tuple[Part, ...]
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
    """An image of an input.

    Attributes:
        key: Key of its row.
        source: The file that contains it.
        content: The encoded image, the path or URL of its file, or why it cannot be read.
    """

    key: str
    source: str
    content: bytes | str | Skipped

    def read(self) -> bytes:
        """The encoded image.

        Raises:
            Skipped: It cannot be read.
        """
        if isinstance(self.content, Skipped):
            raise self.content
        return _read_file(self.content) if isinstance(self.content, str) else self.content


def find_inputs(named: Sequence[str], lines: Iterable[str], part_items: int) -> Inputs:
    """Find all inputs and split them into parts.

    Args:
        named: Files, folders, patterns, each a path or a URL, or `-` for those in `lines`.
        lines: One path or URL each.
        part_items: Images of a part.

    Raises:
        UserError: A name matches nothing, or the inputs are of several kinds.
    """
    found: list[tuple[str, int]] = []
    for name in named:
        listed = (line.rstrip("\r\n") for line in lines) if name == "-" else [name]
        found += [one for line in listed if line for one in _expand(line)]
    paths = [path for path, _ in found]
    if not paths:
        raise UserError(f"No images found in {', '.join(named)}.")
    kinds = {_kind(path) for path in paths}
    if len(kinds) > 1:
        raise UserError("Give images, Parquet files or shards, not several kinds at once.")
    (kind,) = kinds
    digest = hashlib.sha256(f"{kind}\n".encode())
    for path, size in found:
        digest.update(f"{size} {path}\n".encode("utf-8", "surrogateescape"))
    parts = tuple(_split(kind, paths, part_items))
    return Inputs(kind=kind, parts=parts, digest=digest.hexdigest())


def _expand(name: str) -> list[tuple[str, int]]:
    """Paths or URLs, as the name is written, and their bytes."""
    files, root = open_place(name)
    found: list[tuple[str, int]] = []
    with explained(name):
        matching = _matching(files, root)
        for path, info in sorted(matching.items()):
            is_folder = info["type"] == "directory"
            found += _in_folder(files, path) if is_folder else [(path, int(info["size"]))]
    if not matching:
        raise UserError(
            f"{name} does not exist; give files, folders, patterns, or - for a list of paths."
        )
    if is_url(name):
        return [(files.unstrip_protocol(path), size) for path, size in found]
    is_whole = os.path.isabs(name)
    return [(path if is_whole else os.path.relpath(path), size) for path, size in found]


def _matching(files: Any, root: str) -> dict[str, dict[str, Any]]:
    """What fsspec says about each file and folder of a name or a pattern."""
    try:
        return {root: files.info(root)}
    except FileNotFoundError:
        if not glob.has_magic(root):
            return {}
    fixed = len(re.split(r"[*?[]", root, maxsplit=1)[0].rpartition("/")[0]) + 1
    found: dict[str, dict[str, Any]] = files.glob(root, detail=True)
    return {path: info for path, info in found.items() if "/." not in f"/{path[fixed:]}"}


def _in_folder(files: Any, folder: str) -> list[tuple[str, int]]:
    """All images below a folder; if there are none, its Parquet files; else its shards."""
    found = files.find(folder, detail=True)
    names = {path: path[len(folder) :].lower() for path in sorted(found)}
    seen = [path for path, name in names.items() if "/." not in name and "/_" not in name]
    for suffixes in (IMAGES, ".parquet", ".tar"):
        if chosen := [path for path in seen if names[path].endswith(suffixes)]:
            return [(path, found[path]["size"]) for path in chosen]
    return []


def _kind(path: str) -> Kind:
    suffix = Path(path).suffix.lower()
    if suffix == ".parquet":
        return "parquet"
    return "tar" if suffix == ".tar" else "files"


def _split(kind: Kind, paths: Sequence[str], part_items: int) -> Iterator[Part]:
    if kind == "parquet":
        totals = {path: _num_rows(path) for path in paths}
        ranges = [(path, at) for path in paths for at in range(0, totals[path], part_items)]
        for number, (path, start) in enumerate(ranges):
            stop = min(start + part_items, totals[path])
            yield Part(number=number, paths=(path,), start=start, stop=stop)
        return
    num_files = 1 if kind == "tar" else part_items
    for number, start in enumerate(range(0, len(paths), num_files)):
        yield Part(number=number, paths=tuple(paths[start : start + num_files]))


def _num_rows(path: str) -> int:
    import pyarrow.parquet as pq  # noqa: PLC0415 - of the extra `cli`; images need none

    try:
        with open_file(path) as file:
            return int(pq.read_metadata(file).num_rows)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as Parquet.") from error


def open_file(path: str) -> Any:
    """Open a file or an object for reading anywhere in it."""
    files, root = open_place(path)
    with explained(path):
        return files.open(root, "rb")


def read_part(part: Part, columns: Columns) -> Generator[InputImage]:
    """The images of a part, always in the same order; files are read later."""
    kind = _kind(part.paths[0])
    if kind == "files":
        yield from (InputImage(key=path, source=path, content=path) for path in part.paths)
    elif kind == "parquet":
        yield from _read_rows(part, columns)
    else:
        yield from _read_shard(part.paths[0])


def _read_file(path: str) -> bytes:
    files, root = open_place(path)
    data, size = b"", 0
    try:
        if not is_url(path):
            info = files.info(root)
            # Opening a pipe without a writer would block for ever.
            if info["type"] != "file":
                raise Skipped("This is not a regular file.")
            size = info["size"]
        if size <= MAX_FILE_BYTES:
            with explained(path):
                data = files.cat_file(root)
    except OSError as error:
        reason = error.strerror or "there is no such object"
        raise Skipped(f"The file cannot be read: {reason}.") from error
    if max(size, len(data)) > MAX_FILE_BYTES:
        raise Skipped(f"The file is larger than {MAX_FILE_BYTES} bytes.")
    return data


def _read_rows(part: Part, columns: Columns) -> Iterator[InputImage]:
    import pyarrow.parquet as pq  # noqa: PLC0415 - of the extra `cli`; images need none

    (path,) = part.paths
    with open_file(path) as opened, pq.ParquetFile(opened) as file:
        wanted = [name for name in (columns.image, columns.key) if name is not None]
        missing = [name for name in wanted if name not in file.schema_arrow.names]
        if missing:
            raise UserError(
                f"{path} has no column {missing[0]!r}. Use --image-column or --key-column with one "
                f"of {', '.join(file.schema_arrow.names)}."
            )
        groups = range(file.num_row_groups)
        ends = np.cumsum([0, *(file.metadata.row_group(group).num_rows for group in groups)])
        own = [
            group for group in groups if ends[group] < part.stop and ends[group + 1] > part.start
        ]
        row = int(ends[own[0]])
        for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=own, columns=wanted):
            for values in batch.to_pylist():
                if part.start <= row < part.stop:
                    key = f"{path}:{row}" if columns.key is None else str(values[columns.key])
                    content = _content_of(values[columns.image], path)
                    yield InputImage(key=key, source=path, content=content)
                row += 1


def _content_of(value: Any, source: str) -> bytes | str | Skipped:
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        return Skipped("The row contains neither bytes nor a path.")
    if value.startswith(("http://", "https://")):
        return Skipped("Images are not downloaded from web servers.")
    return value if is_url(value) else os.path.join(os.path.dirname(source), value)


def _read_shard(path: str) -> Iterator[InputImage]:
    """Read a WebDataset shard: adjacent files form a sample if they agree up to the first dot."""
    try:
        with open_file(path) as file, tarfile.open(fileobj=file, mode="r|") as shard:
            members = (member for member in shard if member.isfile())
            for key, sample in groupby(members, lambda member: _sample_of(member.name)):
                image = next((m for m in sample if m.name.lower().endswith(IMAGES)), None)
                yield InputImage(key=key, source=path, content=_member(shard, image))
            # tarfile takes a truncated header for the end of the archive.
            if 0 < file.seek(0, os.SEEK_END) - shard.offset < tarfile.BLOCKSIZE:
                raise EOFError
    except (OSError, tarfile.TarError, EOFError) as error:
        if isinstance(error, OSError) and is_url(path):
            raise UserError(f"{path}: {type(error).__name__}: {error}") from error
        problem = Skipped("The shard is damaged from here on.")
        yield InputImage(key=f"{path}:end", source=path, content=problem)


def _sample_of(name: str) -> str:
    folder, _, file = name.rpartition("/")
    stem = file.partition(".")[0]
    return f"{folder}/{stem}" if folder else stem


def _member(shard: tarfile.TarFile, image: tarfile.TarInfo | None) -> bytes | Skipped:
    if image is None or image.size > MAX_FILE_BYTES:
        return Skipped("The sample contains no image.")
    stream = shard.extractfile(image)
    assert stream is not None  # of a regular file
    return stream.read()


def readable(path: str) -> str:
    """A path as text; file names may contain bytes that are not UTF-8."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
