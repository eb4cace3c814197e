"""Embeddings of many images as Parquet.

Shape legend: D width, h w patch grid.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from model.files import atomic_file
from tipserve_cli.bulk.job import Job, JobFolder, Row
from tipserve_cli.bulk.vectors import GRIDS, RECORD_KEY, Dtype, EmbedTask
from tipserve_client.results import FloatArray

# Rows are written in groups of this size, because patch embeddings of a part can be gigabytes.
GROUP_BYTES: Final = 32 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class ParquetTask(EmbedTask):
    """Writes Parquet: a row for each image."""

    suffix: str = ".parquet"

    def write(self, file: Path, rows: Iterator[Row], job: Job) -> None:
        """Write the rows in groups."""
        schema = self._schema(job)
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:
            for group in _groups(row for _, row in rows):
                writer.write_table(to_table(group, schema))

    def stored_record(self, file: Path) -> object:
        """The record in the schema."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            return json.loads(pq.read_schema(file).metadata[RECORD_KEY.encode()])
        return None

    def join(self, folder: JobFolder, file: Path | None) -> str:
        """Write all parts to the file, if it is one; count the rows."""
        num_rows = 0
        with ExitStack() as stack:
            writer: Any = None
            if file is not None:
                temporary = stack.enter_context(atomic_file(file))
                new = pq.ParquetWriter(temporary, self._schema(folder.job), compression="zstd")
                writer = stack.enter_context(new)
            for name in folder.finished().values():
                with folder.call("open", name, mode="rb") as opened, pq.ParquetFile(opened) as part:
                    num_rows += part.metadata.num_rows
                    for index in range(part.num_row_groups if writer else 0):
                        writer.write_table(part.read_row_group(index))
        return f"{num_rows} rows"

    def _schema(self, job: Job) -> pa.Schema:
        metadata = {RECORD_KEY: json.dumps(job.record())}
        return row_schema(self.outputs, job.model["embed_dim"], self.dtype, metadata)


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


def _groups(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    group: list[dict[str, Any]] = []
    num_bytes = 0
    for row in rows:
        group.append(row)
        num_bytes += sum(value.nbytes for value in row.values() if isinstance(value, np.ndarray))
        if num_bytes >= GROUP_BYTES:
            yield group
            group, num_bytes = [], 0
    if group:
        yield group


def to_table(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Convert rows, at least one, to a table."""
    columns = {field: [row[field.name] for row in rows] for field in schema}
    arrays = [
        _vectors(values, field.type)
        if isinstance(values[0], np.ndarray)
        else pa.array(values, field.type)
        for field, values in columns.items()
    ]
    return pa.table(arrays, schema=schema)


def _vectors(arrays: Sequence[FloatArray], kind: pa.DataType) -> Any:
    is_grid = not pa.types.is_fixed_size_list(kind)
    vector = kind.value_type if is_grid else kind
    # `to_pandas_dtype` of pyarrow 18 needs pandas.
    dtype = np.float16 if pa.types.is_float16(vector.value_type) else np.float32
    flat = [array.reshape(-1).astype(dtype, copy=False) for array in arrays]
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.concatenate(flat)), type=vector)
    if not is_grid:
        return vectors
    ends = np.cumsum([0, *(array.size // vector.list_size for array in flat)], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(ends), vectors, type=kind)
