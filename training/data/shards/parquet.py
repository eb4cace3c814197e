"""Items for new shards: rows of Parquet files."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from training.data.shards.sample import BadSample, ReadSample, Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class ParquetColumns:
    """Meaning of the columns.

    Attributes:
        image: The image: its bytes, a struct with "bytes" and "path" as `datasets` writes it,
            or a path.
        captions: The column of each caption source.
        kept: Columns that are kept as they are, such as url and license.
    """

    image: str = "image"
    captions: Mapping[str, str] = field(default_factory=dict)
    kept: Sequence[str] = ()

    @property
    def all(self) -> list[str]:
        """All distinct columns."""
        return list(dict.fromkeys([self.image, *self.captions.values(), *self.kept]))


class ParquetItems:
    """The rows of some files, in the order of the files."""

    def __init__(self, files: Sequence[Path], columns: ParquetColumns, *, root: Path) -> None:
        """Count the rows from the metadata; reads no rows.

        Args:
            files: Parquet files.
            columns: What is read.
            root: The folder that paths in the image column start from.

        Raises:
            ValueError: A file is without one of the columns.
            FileNotFoundError: A file is not there.
        """
        absent = [str(path) for path in files if not path.is_file()]
        if absent:
            raise FileNotFoundError(f"there is no file {absent[0]}; name Parquet files")
        self._files, self._columns, self._root = list(files), columns, root
        self._groups: list[tuple[Path, int, int]] = []
        for path in self._files:
            with pq.ParquetFile(path) as file:
                missing = [name for name in columns.all if name not in file.schema_arrow.names]
                if missing:
                    found = file.schema_arrow.names
                    raise ValueError(f"{path} has no column {missing}; it has {found}")
                for group in range(file.num_row_groups):
                    self._groups.append((path, group, file.metadata.row_group(group).num_rows))

    def __len__(self) -> int:
        return sum(count for _, _, count in self._groups)

    def fingerprint(self) -> str:
        """Changes with the files' names, sizes and rows, and with the columns."""
        sizes = [(path.name, path.stat().st_size) for path in self._files]
        rows = [count for _, _, count in self._groups]
        return hashlib.sha256(repr((sizes, rows, self._columns)).encode()).hexdigest()

    def items(self, start: int, stop: int) -> Iterator[tuple[str, ReadSample]]:
        """Read rows; loads only their row groups."""
        first = 0
        for path, group, count in self._groups:
            if first < stop and start < first + count:
                for row, content in enumerate(_rows(path, group, self._columns.all)):
                    if start <= first + row < stop:
                        place = f"{path.name} group {group} row {row}"
                        yield place, partial(self._sample, first + row, content)
            first += count

    def _sample(self, item: int, row: Mapping[str, Any]) -> Sample:
        columns = self._columns
        image = _image_bytes(row[columns.image], self._root)
        captions = {source: row[column] for source, column in columns.captions.items()}
        return Sample(
            key=f"{item:09d}",
            image=image,
            suffix=_suffix(image),
            captions={s: text.strip() for s, text in captions.items() if _is_text(text)},
            fields={name: _plain(row[name]) for name in columns.kept},
        )


def _rows(path: Path, group: int, columns: list[str]) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(64, row_groups=[group], columns=columns):
            yield from batch.to_pylist()


def _image_bytes(value: object, root: Path) -> bytes:
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str) or not value:
        raise BadSample("the row has no image")
    path = root / value
    if not path.resolve().is_relative_to(root.resolve()):
        raise BadSample(f"the path {value} leaves {root}")
    if not path.is_file():
        raise BadSample(f"there is no file {path}")
    return path.read_bytes()


def _suffix(image: bytes) -> str:
    """The suffix of an image by its first bytes."""
    if image.startswith(b"\x89PNG"):
        return ".png"
    return ".webp" if image[8:12] == b"WEBP" else ".jpg"


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _plain(value: object) -> object:
    """The value as a JSON type; other types become text."""
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
