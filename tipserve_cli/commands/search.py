"""`tipserve search`: the most similar images of a file that `tipserve embed` wrote.

Shape legend: N rows, D width.
"""

import heapq
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Final
from zipfile import BadZipFile

import numpy as np
from cyclopts import Parameter
from numpy.typing import NDArray

from model.files import atomic_write
from model.segmentation import l2_normalize
from tipserve_cli.engine import UsageError, UserError, refusals_of
from tipserve_cli.files import read_image
from tipserve_cli.model_options import AsJson, Model, ModelOptions, Positive, as_help, opened_engine
from tipserve_cli.program import DONE
from tipserve_client import ModelInfo
from tipserve_client.results import FloatArray

ROWS_AT_ONCE: Final = 4096
# Inputs of `tipserve embed` that hold several images.
CONTAINERS: Final = (".parquet", ".tar")
# Of a file: names of columns, widths of those with embeddings, and the record as JSON.
Description = tuple[set[str], dict[str, int], str | bytes]
# Of some rows: keys, sources and embeddings.
Batch = tuple[NDArray[Any], NDArray[Any], FloatArray]


@as_help
@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """Options of the command, apart from those of the model.

    Attributes:
        image: Find images similar to this file.
        top: Number of images.
        save: Folder that gets copies of the images, named by their rank.
        as_json: Print JSON.
        column: Column with the embeddings: cls1 or cls2.
    """

    image: str | None = None
    top: Positive = 10
    save: Path | None = None
    as_json: AsJson = False
    column: str = "cls1"


@as_help
def run(
    file: Path,
    text: str | None = None,
    /,
    *,
    options: Annotated[SearchOptions, Parameter(name="*")] = SearchOptions(),
    model: Model = ModelOptions(),
) -> int:
    """Run the command; returns the exit status.

    Args:
        file: A .parquet or .npz file, or a folder of parts, from `tipserve embed`.
        text: Words to find.
        options: Of the command.
        model: Here, or on a server.
    """
    if (text is None) == (options.image is None):
        raise UsageError("Give words, or --image with an image file.")
    files = sorted(file.glob("part-*.parquet")) if file.is_dir() else [file]
    if not files:
        raise UserError(f"{file} has no parts; give the output of `tipserve embed`.")
    column, asked = options.column, {"model": model.served_name}
    record, width = _read_record(files[0], column)
    with opened_engine(model, heads=()) as engine:
        _check_model(file, record.get("model", {}), width, engine.find_model(model.served_name))
        client: Any = engine.client
        if options.image is None:
            (query_D,) = client.embed_texts([text], **asked)
        else:
            # The image of a query is resized as the others were.
            embedded = record.get("options", {})
            asked |= {name: embedded.get(name) for name in ("resolution", "fit")}
            with refusals_of(options.image):
                content = read_image(options.image)
                (found,) = client.embed_images(content, outputs=column, **asked)
            query_D = getattr(found, column)
    scored = _scored(files, column, l2_normalize(query_D), options.top)
    best = heapq.nlargest(options.top, scored, key=lambda one: one["score"])
    if options.save is not None:
        _save(best, options.save)
    if options.as_json:
        print(json.dumps(best, indent=2))
    else:
        for one in best:
            print(f"{one['score']:.4f}  {one['key']}")
    return DONE


def _save(found: Sequence[dict[str, Any]], folder: Path) -> None:
    """Copy images to the folder, as `01-NAME`.

    Raises:
        UserError: An image has no file of its own.
    """
    from tipserve_cli.bulk.inputs import open_file  # noqa: PLC0415 - slow to import

    for one in found:
        if one["source"].lower().endswith(CONTAINERS):
            raise UserError(f"{one['key']} is inside {one['source']}; --save copies files only.")
    folder.mkdir(parents=True, exist_ok=True)
    for rank, one in enumerate(found, start=1):
        name = PurePosixPath(one["source"]).name
        with open_file(one["source"]) as file:
            atomic_write(folder / f"{rank:02}-{name}", file.read())


def _read_record(file: Path, column: str) -> tuple[dict[str, Any], int]:
    """The record of the job that wrote a file, and the width of the embeddings in a column."""
    if _is_archive(file):
        names, widths, stored = _describe_archive(file)
    else:
        names, widths, stored = _describe_table(file)
    if not {"key", "source"} <= names:
        raise UserError(f"{file} is no output of `tipserve embed`.")
    if column not in widths:
        known = ", ".join(widths) or "none"
        raise UserError(f"{file} has no embeddings {column!r}; choose a --column from {known}.")
    record: dict[str, Any] = {}
    with suppress(TypeError, ValueError):
        record = json.loads(stored)
    return record, widths[column]


def _is_archive(file: Path) -> bool:
    return file.suffix.lower() == ".npz"


def _describe_archive(file: Path) -> Description:
    try:
        with np.load(file) as stored:
            columns = dict(stored)
    except (OSError, ValueError, BadZipFile) as error:
        raise UserError(f"{file} cannot be read as an archive of NumPy.") from error
    widths = {name: array.shape[1] for name, array in columns.items() if array.ndim == 2}
    return set(columns), widths, str(columns.get("tipserve", ""))


def _describe_table(file: Path) -> Description:
    # Imported here, because they are of the extra `cli`, and help needs none.
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    try:
        schema = pq.read_schema(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read as Parquet.") from error
    widths = {
        field.name: field.type.list_size
        for field in schema
        if pa.types.is_fixed_size_list(field.type)
    }
    return set(schema.names), widths, (schema.metadata or {}).get(b"tipserve", b"")


def _check_model(file: Path, before: dict[str, Any], width: int, model: ModelInfo) -> None:
    """Check that the embeddings are of this model, because those of others do not compare."""
    is_other = before.get("fingerprint", model.package_digest) != model.package_digest
    if is_other or width != model.embed_dim:
        raise UserError(
            f"{file} was embedded by {before.get('name', 'another model')}, and the query would "
            f"be by {model.name}; choose the same by --model."
        )


def _scored(
    files: Sequence[Path], column: str, unit_D: FloatArray, num_images: int
) -> Iterator[dict[str, Any]]:
    """The best images of each batch of rows."""
    for file in files:
        batches = _archive_batches(file, column) if _is_archive(file) else _batches(file, column)
        for keys_N, sources_N, rows_ND in batches:
            scores_N = l2_normalize(rows_ND.astype(np.float32)) @ unit_D
            for row in np.argsort(-scores_N, kind="stable")[:num_images]:
                names = {"key": str(keys_N[row]), "source": str(sources_N[row])}
                yield {"score": float(scores_N[row]), **names}


def _archive_batches(file: Path, column: str) -> Iterator[Batch]:
    with np.load(file) as stored:
        yield stored["key"], stored["source"], stored[column]


def _batches(file: Path, column: str) -> Iterator[Batch]:
    import pyarrow.parquet as pq  # noqa: PLC0415

    columns = ["key", "source", column]
    for batch in pq.ParquetFile(file).iter_batches(ROWS_AT_ONCE, columns=columns):
        keys_N, sources_N = (batch.column(name).to_numpy(False) for name in columns[:2])
        flat = batch.column(column).flatten().to_numpy(zero_copy_only=False)
        yield keys_N, sources_N, flat.reshape(batch.num_rows, -1)
