"""`tipserve embed`: embed many images, here, by a server, or on Ray."""

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from cyclopts import Parameter

from model.preprocess import Fit
from model.stores import is_url
from tipserve_cli.engine import UsageError, UserError
from tipserve_cli.model_options import (
    OUTPUT,
    Flag,
    Input,
    Model,
    ModelOptions,
    Positive,
    Ray,
    RayOptions,
    as_help,
)
from tipserve_cli.program import DONE, DONE_WITH_SKIPPED_IMAGES

EMBEDDINGS: Final = Parameter(group="Embeddings")
INPUTS: Final = Parameter(group="Inputs")
IMAGE_OUTPUTS: Final = ("patches", "values", "cls1", "cls2")
TABLE: Final = ".parquet"
ARCHIVE: Final = ".npz"
# A folder with such a suffix is most likely a mistake: the user expects a file of this format.
OTHER_FORMATS: Final = {
    *(".arrow", ".csv", ".feather", ".h5", ".hdf5", ".json", ".jsonl", ".npy", ".pickle"),
    *(".pkl", ".pq", ".pt", ".safetensors", ".tar", ".tsv", ".txt", ".zip"),
}


@as_help
@dataclass(frozen=True, kw_only=True)
class EmbedOptions:
    """Options of the command, apart from those of the model.

    Attributes:
        output: A .parquet file, or a folder for one Parquet file per part (extra `cli`); a folder
            may be the URL of an object store, such as s3://bucket/embeddings (extra `stores`). Or
            an .npz file of NumPy for cls1 and cls2, which needs no extra.
        overwrite: Delete an existing output and start again.
        allow_bad_items: Exit with 0 even if images were skipped.
        outputs: patches, values, cls1, cls2; separated by commas.
        normalize: Give embeddings unit length, or leave their length as it is.
        resolution: Resize the short side to this many pixels.
        fit: Resize to a square, or keep the aspect ratio.
        dtype: Number format in the output.
        image_column: Column of a Parquet input: images, paths, or structs of both.
        key_column: Column of a Parquet input that becomes the key.
        part_items: Images of a part, which is the unit of writing and of resuming; a shard is
            always one part.
    """

    # No Path, which would make one slash of the two in s3://.
    output: Annotated[str, OUTPUT]
    overwrite: Flag = False
    allow_bad_items: Flag = False
    outputs: Annotated[str, EMBEDDINGS] = "cls1"
    normalize: Annotated[bool, EMBEDDINGS, Parameter(negative="--no-normalize")] = True
    resolution: Annotated[Positive | None, EMBEDDINGS] = None
    fit: Annotated[Fit, EMBEDDINGS] = "squash"
    dtype: Annotated[Literal["float32", "float16"], EMBEDDINGS] = "float32"
    image_column: Annotated[str, INPUTS] = "image"
    key_column: Annotated[str | None, INPUTS] = None
    part_items: Annotated[Positive, INPUTS] = 512


@as_help
def run(
    *paths: Annotated[Input, Parameter(required=True)],
    options: Annotated[EmbedOptions, Parameter(name="*")],
    cluster: Ray = RayOptions(),
    model: Model = ModelOptions(),
) -> int:
    """Run the command; returns the exit status.

    Args:
        paths: Images, folders, patterns, Parquet files or .tar shards of WebDataset (one kind at a
            time), also as URLs of an object store such as s3://bucket/photos (extra `stores`); -
            reads a list of paths from standard input.
        options: Of the command.
        cluster: For --ray.
        model: Here, or on a server.
    """
    # Imported here, because they are slow to import, and help needs none.
    from tipserve_cli.bulk.inputs import find_inputs  # noqa: PLC0415
    from tipserve_cli.bulk.job import run_here  # noqa: PLC0415

    _check_output(options.output)
    task = job_task(options, model)
    inputs = find_inputs(paths, sys.stdin, options.part_items)
    is_file = _suffix(options.output) in {TABLE, ARCHIVE}
    output = {"output": options.output, "is_file": is_file, "overwrite": options.overwrite}
    if cluster.ray is None:
        status = run_here(task, inputs, model, **output)
    else:
        if model.url:
            raise UsageError("--ray loads the model on the cluster; remove --url.")
        on_ray = importlib.import_module("tipserve_cli.bulk.on_ray")
        status = on_ray.run_on_ray(task, inputs, model.loading_flags, cluster, **output)
    is_allowed = options.allow_bad_items and status == DONE_WITH_SKIPPED_IMAGES
    return DONE if is_allowed else status


def _suffix(output: str) -> str:
    return Path(output).suffix.lower()


def _check_output(name: str) -> None:
    """Check that the name of the output fits what is written."""
    output, suffix = Path(name), _suffix(name)
    if is_url(name) and suffix in {TABLE, ARCHIVE}:
        raise UsageError(
            f"--output {name}: give a folder of the store; each part is an object in it."
        )
    if suffix in {TABLE, ARCHIVE} and output.is_dir():
        raise UserError(f"{output} is a folder; give a file name, or another folder.")
    if suffix in OTHER_FORMATS and not output.is_dir():
        raise UsageError(
            f"--output {output.name}: only Parquet and NumPy archives are supported. Give a file "
            f"name that ends in {TABLE} or {ARCHIVE}, or a folder."
        )


def job_task(options: EmbedOptions, model: ModelOptions) -> Any:
    """The task of the job."""
    from tipserve_cli.bulk.inputs import Columns  # noqa: PLC0415

    names = tuple(dict.fromkeys(n.strip() for n in options.outputs.split(",") if n.strip()))
    unknown = [name for name in names if name not in IMAGE_OUTPUTS]
    if unknown or not names:
        known = ", ".join(IMAGE_OUTPUTS)
        raise UsageError(f"--outputs {options.outputs!r} is invalid; choose from {known}.")
    asked: dict[str, Any] = {
        "outputs": names,
        "dtype": options.dtype,
        "columns": Columns(image=options.image_column, key=options.key_column),
        "part_items": options.part_items,
        "request": {
            "normalize": options.normalize,
            "resolution": options.resolution,
            "fit": options.fit,
        },
        "model": model.served_name,
    }
    if _suffix(options.output) == ARCHIVE:
        from tipserve_cli.bulk.vectors import GRIDS, ArchiveTask  # noqa: PLC0415

        if grids := [name for name in names if name in GRIDS]:
            raise UsageError(
                f"--outputs {grids[0]}: only cls1 and cls2 fit into {ARCHIVE}; use {TABLE}."
            )
        return ArchiveTask(**asked)
    from tipserve_cli.bulk.rows import ParquetTask  # noqa: PLC0415 - needs the extra `cli`

    return ParquetTask(**asked)
