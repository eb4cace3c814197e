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
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Final, Literal

from model.stores import is_url
from tipserve_cli.bulk.stores import explained, open_place
from tipserve_cli.engine import UserError

Kind = Literal["files", "parquet", "tar"]
IMAGES: Final = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic")
SUFFIXES: Final = {"parquet": (".parquet",), "tar": (".tar",), "files": IMAGES}
# Larger files are skipped without reading them: they exceed every limit of the service.
MAX_FILE_BYTES: Final = 256 * 1024 * 1024
ROWS_AT_ONCE: Final = 64
TOO_LARGE: Final = f"The file is larger than {MAX_FILE_BYTES} bytes."


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
    """All inputs of a job: its parts in order, and a digest of paths and file sizes."""

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
        path: The file to read; None if it has been read.
        data: The encoded image.
        problem: Why it cannot be read.
    """

    key: str
    source: str
    path: str | None = None
    data: bytes = b""
    problem: str = ""

    def read(self) -> bytes:
        """The encoded image."""
        if self.problem:
            raise Skipped(self.problem)
        return self.data if self.path is None else _read_file(self.path)


def find_inputs(named: Sequence[str], lines: Iterable[str], part_items: int) -> Inputs:
    """Find all inputs and split them into parts.

    Args:
        named: Files, folders, patterns, each a path or a URL, or `-` for those in `lines`.
        lines: One path or URL each.
        part_items: Images of a part.
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
    return Inputs(parts=tuple(_split(kind, paths, part_items)), digest=digest.hexdigest())


def _expand(name: str) -> list[tuple[str, int]]:
    """Paths or URLs, and their bytes."""
    files, root = open_place(name)
    with explained(name):
        found = _matching(files, root)
        sized = [
            one
            for path, info in sorted(found.items())
            for one in (
                _in_folder(files, path)
                if info["type"] == "directory"
                else [(path, int(info["size"]))]
            )
        ]
    if not found:
        raise UserError(
            f"{name} does not exist; give files, folders, patterns, or - for a list of paths."
        )
    return [(_as_named(files, path, name), size) for path, size in sized]


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
    by_kind: dict[str, list[tuple[str, int]]] = {"files": [], "parquet": [], "tar": []}
    for path in sorted(found):
        name = path[len(folder) :].lower()
        for kind, suffixes in SUFFIXES.items():
            if name.endswith(suffixes) and "/." not in name and "/_" not in name:
                by_kind[kind].append((path, found[path]["size"]))
    return by_kind["files"] or by_kind["parquet"] or by_kind["tar"]


def _as_named(files: Any, path: str, name: str) -> str:
    """A path as a URL, or relative to the working folder, if that is how the name was given."""
    if is_url(name):
        url: str = files.unstrip_protocol(path)
        return url
    return path if os.path.isabs(name) else os.path.relpath(path)


def _kind(path: str) -> Kind:
    suffix = Path(path).suffix.lower()
    if suffix == ".parquet":
        return "parquet"
    return "tar" if suffix == ".tar" else "files"


def _split(kind: Kind, paths: Sequence[str], part_items: int) -> Iterator[Part]:
    chosen: list[tuple[tuple[str, ...], int, int]]
    if kind == "tar":
        chosen = [((path,), 0, 0) for path in paths]
    elif kind == "files":
        starts = range(0, len(paths), part_items)
        chosen = [(tuple(paths[start : start + part_items]), 0, 0) for start in starts]
    else:
        chosen = [
            ((path,), start, min(start + part_items, total))
            for path in paths
            for total in [_num_rows(path)]
            for start in range(0, total, part_items)
        ]
    for number, (some, start, stop) in enumerate(chosen):
        yield Part(number=number, kind=kind, paths=some, start=start, stop=stop)


def _num_rows(path: str) -> int:
    import pyarrow.parquet as pq  # noqa: PLC0415 - of the extra `cli`; images need none

    try:
        with _opened(path) as file:
            return int(pq.read_metadata(file).num_rows)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as Parquet.") from error


@contextmanager
def _opened(path: str) -> Iterator[IO[bytes]]:
    """Open a file or an object for reading anywhere in it."""
    files, root = open_place(path)
    with explained(path):
        opened = files.open(root, "rb")
    with opened:
        yield opened


def read_part(part: Part, columns: Columns) -> Generator[InputImage]:
    """The images of a part, always in the same order; files are read later."""
    if part.kind == "files":
        yield from (InputImage(key=path, source=path, path=path) for path in part.paths)
    elif part.kind == "parquet":
        yield from _read_rows(part, columns)
    else:
        yield from _read_shard(part.paths[0])


def _read_file(path: str) -> bytes:
    files, root = open_place(path)
    try:
        if not is_url(path):
            info = files.info(root)
            # Opening a pipe without a writer would block for ever.
            if info["type"] != "file":
                raise Skipped("This is not a regular file.")
            if info["size"] > MAX_FILE_BYTES:
                raise Skipped(TOO_LARGE)
        with explained(path):
            data: bytes = files.cat_file(root)
    except OSError as error:
        reason = error.strerror or "there is no such object"
        raise Skipped(f"The file cannot be read: {reason}.") from error
    if len(data) > MAX_FILE_BYTES:
        raise Skipped(TOO_LARGE)
    return data


def _read_rows(part: Part, columns: Columns) -> Iterator[InputImage]:
    import pyarrow.parquet as pq  # noqa: PLC0415 - of the extra `cli`; images need none

    (path,) = part.paths
    with _opened(path) as opened, pq.ParquetFile(opened) as file:
        wanted = [name for name in (columns.image, columns.key) if name is not None]
        missing = [name for name in wanted if name not in file.schema_arrow.names]
        if missing:
            raise UserError(
                f"{path} has no column {missing[0]!r}. Use --image-column or --key-column with one "
                f"of {', '.join(file.schema_arrow.names)}."
            )
        row, groups = _groups(file, part)
        for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=groups, columns=wanted):
            for values in batch.to_pylist():
                if part.start <= row < part.stop:
                    key = f"{path}:{row}" if columns.key is None else str(values[columns.key])
                    yield _from_value(values[columns.image], key, path)
                row += 1


def _groups(file: Any, part: Part) -> tuple[int, list[int]]:
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
    image = InputImage(key=key, source=source)
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return replace(image, data=value)
    if not isinstance(value, str):
        return replace(image, problem="The row contains neither bytes nor a path.")
    if value.startswith(("http://", "https://")):
        return replace(image, problem="Images are not downloaded from web servers.")
    place = value if is_url(value) else os.path.join(os.path.dirname(source), value)
    return replace(image, path=place)


def _read_shard(path: str) -> Iterator[InputImage]:
    """Read a WebDataset shard: adjacent files form a sample if they agree up to the first dot."""
    key, data = None, None
    try:
        with _opened(path) as file, tarfile.open(fileobj=file, mode="r|") as shard:
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
            if 0 < file.seek(0, os.SEEK_END) - shard.offset < tarfile.BLOCKSIZE:
                raise EOFError
    except (OSError, tarfile.TarError, EOFError) as error:
        if isinstance(error, OSError) and is_url(path):
            raise UserError(f"{path}: {type(error).__name__}: {error}") from error
        if key is not None and data is not None:
            yield _from_sample(key, data, path)
        problem = "The shard is damaged from here on."
        yield InputImage(key=f"{path}:end", source=path, problem=problem)
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
    return InputImage(key=key, source=path, data=data or b"", problem=problem)


def readable(path: str) -> str:
    """A path as text; file names may contain bytes that are not UTF-8."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
