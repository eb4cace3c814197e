"""Embeddings of many images as Parquet.

Shape legend: D width, h w patch grid.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from model.files import atomic_file
from model.image_codec import upright_size
from tipserve_cli.bulk.inputs import Columns, InputImage, readable
from tipserve_cli.bulk.job import Job, JobFolder, Row
from tipserve_client import Client
from tipserve_client.results import FloatArray

Dtype = Literal["float32", "float16"]
GRIDS: Final = ("patches", "values")
METADATA_KEY: Final = b"tipserve"
# Rows are written in groups of this size, because patch embeddings of a part can be gigabytes.
GROUP_BYTES: Final = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """An image's size in pixels after EXIF rotation, and its embeddings by name."""

    size_hw: tuple[int, int]
    embedding: Mapping[str, FloatArray]


@dataclass(frozen=True, kw_only=True)
class EmbedTask:
    """Embeds images.

    Attributes:
        outputs: Names of the embeddings.
        dtype: Number format in the output.
        columns: Columns of Parquet inputs.
        part_items: Images of a part.
        request: Further options of the client.
        model: Name of the served model; None is the only one.
    """

    outputs: tuple[str, ...]
    dtype: Dtype
    columns: Columns
    part_items: int
    request: Mapping[str, Any]
    model: str | None = None
    suffix: str = ".parquet"

    def options(self) -> dict[str, Any]:
        """As `Task` says."""
        return {
            **self.request,
            "outputs": list(self.outputs),
            "dtype": self.dtype,
            "image_column": self.columns.image,
            "key_column": self.columns.key,
            "part_items": self.part_items,
        }

    def ask(self, client: Client, image: bytes) -> Embedded:
        """As `Task` says."""
        asked: dict[str, Any] = {**self.request, "outputs": self.outputs, "model": self.model}
        (found,) = client.embed_images(image, **asked)
        embedding = {name: getattr(found, name) for name in self.outputs}
        return Embedded(size_hw=upright_size(image), embedding=embedding)

    def name(self, image: InputImage) -> dict[str, str]:
        """As `Task` says."""
        return {"key": readable(image.key), "source": readable(image.source)}

    def write(self, file: Path, rows: Iterator[Row], job: Job) -> None:
        """As `Task` says."""
        schema = self._schema(job)
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:
            for group in _groups(rows):
                writer.write_table(to_table(group, schema))

    def join(self, folder: JobFolder, file: Path | None) -> str:
        """As `Task` says."""
        text = f"{count_rows(folder)} rows"
        if file is None:
            return text
        with (
            atomic_file(file) as temporary,
            pq.ParquetWriter(temporary, self._schema(folder.job), compression="zstd") as writer,
        ):
            for name in folder.finished().values():
                with folder.opened(name) as opened, pq.ParquetFile(opened) as part:
                    for index in range(part.num_row_groups):
                        writer.write_table(part.read_row_group(index))
        return text

    def _schema(self, job: Job) -> pa.Schema:
        metadata = {METADATA_KEY.decode(): json.dumps(job.record())}
        return row_schema(self.outputs, job.model.embed_dim, self.dtype, metadata)


def count_rows(folder: JobFolder) -> int:
    """Number of rows in all finished parts."""
    num_rows = 0
    for name in folder.finished().values():
        with folder.opened(name) as file:
            num_rows += int(pq.read_metadata(file).num_rows)
    return num_rows


def row_schema(
    outputs: Sequence[str], width: int, dtype: Dtype, metadata: Mapping[str, str]
) -> pa.Schema:
    """Columns: key, source, height, width, then the outputs as fixed-size lists of D numbers.

    Patch embeddings are lists of such lists, row by row; the sides of the grid are two columns.
    """
    vector = pa.list_(pa.from_numpy_dtype(np.dtype(dtype)), width)
    columns = {"key": pa.string(), "source": pa.string(), "height": pa.int32(), "width": pa.int32()}
    if any(name in GRIDS for name in outputs):
        columns |= {"grid_height": pa.int32(), "grid_width": pa.int32()}
    columns |= {name: pa.list_(vector) if name in GRIDS else vector for name in outputs}
    fields = [pa.field(name, kind, nullable=False) for name, kind in columns.items()]
    return pa.schema(fields, metadata=dict(metadata))


def _groups(rows: Iterator[Row]) -> Iterator[list[Row]]:
    group: list[Row] = []
    num_bytes = 0
    for image, row in rows:
        group.append((image, row))
        num_bytes += sum(array.nbytes for array in row.embedding.values())
        if num_bytes >= GROUP_BYTES:
            yield group
            group, num_bytes = [], 0
    if group:
        yield group


def to_table(rows: Sequence[Row], schema: pa.Schema) -> pa.Table:
    """Convert rows, at least one, to a table."""
    columns: dict[str, Any] = {
        "key": [readable(image.key) for image, _ in rows],
        "source": [readable(image.source) for image, _ in rows],
        "height": [row.size_hw[0] for _, row in rows],
        "width": [row.size_hw[1] for _, row in rows],
        "grid_height": [_grid(row)[0] for _, row in rows],
        "grid_width": [_grid(row)[1] for _, row in rows],
    }
    arrays = [
        pa.array(columns[field.name], field.type)
        if field.name in columns
        else _vectors([row.embedding[field.name] for _, row in rows], field.type)
        for field in schema
    ]
    return pa.table(arrays, schema=schema)


def _grid(row: Embedded) -> tuple[int, int]:
    for name in GRIDS:
        if name in row.embedding:
            return row.embedding[name].shape[0], row.embedding[name].shape[1]
    return 0, 0


def _vectors(arrays: Sequence[FloatArray], kind: pa.DataType) -> Any:
    is_grid = not pa.types.is_fixed_size_list(kind)
    vector = kind.value_type if is_grid else kind
    # `to_pandas_dtype` of pyarrow 18 needs pandas.
    dtype = np.float16 if pa.types.is_float16(vector.value_type) else np.float32
    width = vector.list_size
    flat = [array.reshape(-1).astype(dtype, copy=False) for array in arrays]
    numbers = pa.array(np.concatenate(flat))
    vectors = pa.FixedSizeListArray.from_arrays(numbers, type=vector)
    if not is_grid:
        return vectors
    ends = np.cumsum([0, *(array.size // width for array in flat)], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(ends), vectors, type=kind)
