"""Splits what was named on a command line into parts, always the same ones for the same inputs.

A part is what is computed, written and resumed as a whole: some hundred images, rows of a Parquet
file, or one WebDataset shard.
"""

import glob
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import pyarrow.parquet as pq

from service.engines.engine import UserError

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
