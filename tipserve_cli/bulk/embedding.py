"""Rows of a bulk job: embeds images in order, and turns embeddings into Arrow tables.

Shape legend: D width, h w patch grid.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa

from model.image_codec import ImageError, upright_size
from service.messages import EmbedImagesRequest, FloatArray
from tipserve_cli.bulk.inputs import InputImage
from tipserve_cli.engines.engine import Embedding, Engine, ImageRefused

Dtype = Literal["float32", "float16"]
GRIDS: Final = ("patches", "values")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The row of an image: its size in pixels after EXIF rotation, and its embeddings by name."""

    key: str
    source: str
    size_hw: tuple[int, int]
    embedding: Mapping[str, FloatArray]


def row_schema(
    outputs: Sequence[str], width: int, dtype: Dtype, metadata: Mapping[str, str]
) -> pa.Schema:
    """Columns: key, source, height, width, then the outputs as fixed-size lists of D numbers.

    Patch embeddings are lists of such lists, row by row; the sides of the grid are two columns.
    """
    vector = pa.list_(pa.from_numpy_dtype(np.dtype(dtype)), width)
    fields = [
        pa.field("key", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
    ]
    if any(name in GRIDS for name in outputs):
        fields += [
            pa.field("grid_height", pa.int32(), nullable=False),
            pa.field("grid_width", pa.int32(), nullable=False),
        ]
    for name in outputs:
        kind = pa.list_(vector) if name in GRIDS else vector
        fields.append(pa.field(name, kind, nullable=False))
    return pa.schema(fields, metadata=dict(metadata))


def to_table(rows: Sequence[Row], schema: pa.Schema) -> pa.Table:
    """Convert rows, at least one, to a table."""
    columns: dict[str, Any] = {
        "key": pa.array([row.key for row in rows], pa.string()),
        "source": pa.array([row.source for row in rows], pa.string()),
        "height": pa.array([row.size_hw[0] for row in rows], pa.int32()),
        "width": pa.array([row.size_hw[1] for row in rows], pa.int32()),
    }
    for field in schema:
        if field.name in columns:
            continue
        if field.name in {"grid_height", "grid_width"}:
            side = int(field.name == "grid_width")
            columns[field.name] = pa.array([_grid(row)[side] for row in rows], pa.int32())
        else:
            columns[field.name] = _vectors([row.embedding[field.name] for row in rows], field.type)
    return pa.table([columns[name] for name in schema.names], schema=schema)


def _grid(row: Row) -> tuple[int, int]:
    (grid_hwD, *_) = (row.embedding[name] for name in GRIDS if name in row.embedding)
    return grid_hwD.shape[0], grid_hwD.shape[1]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class SkippedImage:
    """An image without a row, and the reason."""

    key: str
    source: str
    code: str
    error: str


def embed_images(
    engine: Engine,
    images: Iterable[InputImage],
    request: EmbedImagesRequest,
    check: Callable[[], None] = lambda: None,
) -> Generator[Row | SkippedImage]:
    """Embed images, as many at a time as keep the engine busy. Outcomes have the images' order.

    Args:
        engine: Computes the embeddings.
        images: Read one by one, at most `engine.window` ahead of the outcomes.
        request: The request for each image, without the image.
        check: Called before each image; it raises to stop.

    Raises:
        EngineError: The engine failed.
    """
    in_flight: deque[tuple[InputImage, Future[Embedding] | None]] = deque()
    try:
        for image in images:
            check()
            if len(in_flight) >= engine.window:
                yield _outcome(*in_flight.popleft())
            future = None
            if image.data is not None:
                future = engine.embed(replace(request, images=(image.data,)))
            in_flight.append((image, future))
        while in_flight:
            check()
            yield _outcome(*in_flight.popleft())
    finally:
        for _, future in in_flight:
            if future is not None:
                future.cancel()


def _outcome(image: InputImage, future: "Future[Embedding] | None") -> Row | SkippedImage:
    key, source = readable(image.key), readable(image.source)
    if future is None:
        return SkippedImage(key=key, source=source, code=image.code, error=image.problem)
    try:
        embedding = future.result()
        size_hw = image.size_hw or _size_hw(image)
    except ImageRefused as error:
        return SkippedImage(key=key, source=source, code=error.code, error=str(error))
    except ImageError as error:
        return SkippedImage(key=key, source=source, code="invalid_image", error=f"{error}.")
    return Row(key=key, source=source, size_hw=size_hw, embedding=embedding)


def _size_hw(image: InputImage) -> tuple[int, int]:
    assert isinstance(image.data, bytes)
    return upright_size(image.data)


def readable(path: str) -> str:
    """A path as text; file names may contain bytes that are not UTF-8."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
