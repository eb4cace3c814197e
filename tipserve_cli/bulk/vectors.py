"""Embeddings of many images: what a job asks for, and its output as one NumPy archive.

Shape legend: N images, D width.
"""

import json
from abc import ABC
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal
from zipfile import BadZipFile

import numpy as np

from model.files import atomic_file
from model.image_codec import upright_size
from tipserve_cli.bulk.inputs import InputImage, readable
from tipserve_cli.bulk.job import Job, JobFolder, Row, Task
from tipserve_client import Client

Dtype = Literal["float32", "float16"]
GRIDS: Final = ("patches", "values")
RECORD_KEY: Final = "tipserve"


@dataclass(frozen=True, kw_only=True)
class EmbedTask(Task, ABC):
    """Embeds images.

    Attributes:
        outputs: Names of the embeddings.
        dtype: Number format in the output.
        part_items: Images of a part.
    """

    outputs: tuple[str, ...]
    dtype: Dtype
    part_items: int

    def options(self) -> dict[str, Any]:
        """The request, and how inputs are read and rows written."""
        return {
            **self.request,
            "outputs": list(self.outputs),
            "dtype": self.dtype,
            "image_column": self.columns.image,
            "key_column": self.columns.key,
            "part_items": self.part_items,
        }

    def row(self, client: Client, image: InputImage) -> dict[str, Any]:
        """The columns of an image: its size in pixels after EXIF rotation, and its embeddings."""
        content = image.read()
        asked: dict[str, Any] = {**self.asked, "outputs": self.outputs}
        (found,) = client.embed_images(content, **asked)
        height, width = upright_size(content)
        columns: dict[str, Any] = {**self.name(image), "height": height, "width": width}
        for name in self.outputs:
            columns[name] = getattr(found, name)
            if name in GRIDS:
                columns["grid_height"], columns["grid_width"], _ = columns[name].shape
        return columns

    def name(self, image: InputImage) -> dict[str, str]:
        """Key and source."""
        return {"key": readable(image.key), "source": readable(image.source)}


@dataclass(frozen=True, kw_only=True)
class ArchiveTask(EmbedTask):
    """Writes an .npz file: an array for each column, with an item for each image.

    The arrays of a file have one shape for all images, which grids of patches do not.
    """

    suffix: str = ".npz"

    def write(self, file: Path, rows: Iterator[Row], job: Job) -> None:
        """Write the arrays of a part."""
        found = [row for _, row in rows]
        width = job.model["embed_dim"]
        columns: dict[str, Any] = {
            "key": np.array([row["key"] for row in found], np.str_),
            "source": np.array([row["source"] for row in found], np.str_),
            "height": np.array([row["height"] for row in found], np.int32),
            "width": np.array([row["width"] for row in found], np.int32),
        }
        for name in self.outputs:
            vectors = [row[name] for row in found]
            columns[name] = np.array(vectors, self.dtype).reshape(len(found), width)
        _save(file, columns)

    def stored_record(self, file: Path) -> object:
        """The record in the archive."""
        with suppress(OSError, ValueError, KeyError, BadZipFile), np.load(file) as stored:
            return json.loads(str(stored[RECORD_KEY]))
        return None

    def join(self, folder: JobFolder, file: Path | None) -> str:
        """Write the arrays of all parts to the file."""
        assert file is not None
        parts = []
        for name in folder.finished().values():
            with folder.call("open", name, mode="rb") as opened, np.load(opened) as part:
                parts.append(dict(part))
        columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        columns[RECORD_KEY] = np.array(json.dumps(folder.job.record()))
        with atomic_file(file) as temporary:
            _save(temporary, columns)
        return f"{len(columns['key'])} rows"


def _save(file: Path, columns: dict[str, Any]) -> None:
    # NumPy would add a suffix to the name of the temporary file.
    with file.open("wb") as opened:
        np.savez(opened, **columns)
