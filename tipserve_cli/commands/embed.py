"""`tipserve embed`: embed many images, here, by a server, or on Ray."""

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from cyclopts import Parameter, validators

from model.preprocess import Fit
from model.stores import is_url
from tipserve_cli.engine import UserError
from tipserve_cli.model_options import Model, ModelOptions, opened_engine
from tipserve_cli.program import DONE, DONE_WITH_SKIPPED_IMAGES, reject_options
from tipserve_client import ModelInfo

EMBEDDINGS = "Embeddings"
INPUTS = "Inputs"
RAY = "Many machines, by Ray"
Positive = Annotated[int, Parameter(validator=validators.Number(gte=1))]
IMAGE_OUTPUTS: Final = ("patches", "values", "cls1", "cls2")
SUFFIX: Final = ".parquet"
# A folder with such a suffix is most likely a mistake: the user expects a file of this format.
OTHER_FORMATS: Final = {
    *(".arrow", ".csv", ".feather", ".h5", ".hdf5", ".json", ".jsonl", ".npy", ".npz", ".pickle"),
    *(".pkl", ".pq", ".pt", ".safetensors", ".tar", ".tsv", ".txt", ".zip"),
}


@dataclass(frozen=True, kw_only=True)
class EmbedOptions:
    """Options of the command, apart from those of the model."""

    # No Path, which would make one slash of the two in s3://.
    output: Annotated[
        str,
        Parameter(
            name=("--output", "-o"),
            help="A .parquet file, or a folder for one file per part; a folder may be the URL of "
            "an object store, such as s3://bucket/embeddings (extra `stores`).",
        ),
    ]
    overwrite: Annotated[
        bool, Parameter(help="Delete an existing output and start again.", show_default=False)
    ] = False
    allow_bad_items: Annotated[
        bool, Parameter(help="Exit with 0 even if images were skipped.", show_default=False)
    ] = False
    outputs: Annotated[
        str,
        Parameter(help=f"{', '.join(IMAGE_OUTPUTS)}; separated by commas.", group=EMBEDDINGS),
    ] = "cls1"
    normalize: Annotated[
        bool,
        Parameter(
            negative="--no-normalize",
            help="Give embeddings unit length, or leave their length as it is.",
            group=EMBEDDINGS,
        ),
    ] = True
    resolution: Annotated[
        int | None,
        Parameter(help="Resize the short side to this many pixels.", group=EMBEDDINGS),
    ] = None
    fit: Annotated[
        Fit, Parameter(help="Resize to a square, or keep the aspect ratio.", group=EMBEDDINGS)
    ] = "squash"
    dtype: Annotated[
        Literal["float32", "float16"],
        Parameter(help="Number format in the output.", group=EMBEDDINGS),
    ] = "float32"
    image_column: Annotated[
        str,
        Parameter(
            help="Column of a Parquet input: images, paths, or structs of both.", group=INPUTS
        ),
    ] = "image"
    key_column: Annotated[
        str | None,
        Parameter(help="Column of a Parquet input that becomes the key.", group=INPUTS),
    ] = None
    part_items: Annotated[
        Positive,
        Parameter(
            help="Images of a part, which is the unit of writing and of resuming; a shard is "
            "always one part.",
            group=INPUTS,
        ),
    ] = 512
    ray: Annotated[
        str | bool | None,
        Parameter(
            help="Run on the cluster with this address. Without one: the variable RAY_ADDRESS, "
            "else a new local cluster.",
            metavar="[ADDRESS]",
            group=RAY,
        ),
    ] = None
    workers: Annotated[
        Positive, Parameter(help="Processes that each load the model.", group=RAY)
    ] = 1
    cpus_per_worker: Annotated[float, Parameter(help="CPU cores of a worker.", group=RAY)] = 1.0
    gpus_per_worker: Annotated[float, Parameter(help="GPUs of a worker.", group=RAY)] = 0.0


def run(
    *paths: Annotated[
        str,
        Parameter(
            help="Images, folders, patterns, Parquet files or .tar shards of WebDataset (one kind "
            "at a time), also as URLs of an object store such as s3://bucket/photos (extra "
            "`stores`); - reads a list of paths from standard input.",
            allow_leading_hyphen=True,
            validator=reject_options,
            required=True,
        ),
    ],
    options: Annotated[EmbedOptions, Parameter(name="*")],
    model: Model = ModelOptions(),
) -> int:
    """Run the command; returns the exit status."""
    # Imported here, because they need the extra `cli`, and help needs none.
    from tipserve_cli.bulk import job as jobs  # noqa: PLC0415
    from tipserve_cli.bulk.inputs import find_inputs  # noqa: PLC0415

    _check_output(options.output)
    task = job_task(options, model)
    inputs = find_inputs(paths, sys.stdin, options.part_items)
    new_job = partial(jobs.Job, inputs=inputs, task=task, columns=task.columns)
    if options.ray is not None:
        if model.url:
            raise UserError("--ray loads the model on the cluster; remove --url.")
        on_ray = importlib.import_module("tipserve_cli.bulk.on_ray")
        cluster = on_ray.RayOptions(
            flags=model.loading_flags,
            address=options.ray if isinstance(options.ray, str) else None,
            workers=options.workers,
            cpus=options.cpus_per_worker,
            gpus=options.gpus_per_worker,
        )
        compute = partial(on_ray.compute_on_ray, cluster)
        return _embed(options, new_job(model=on_ray.describe_model(model.loading_flags)), compute)
    with opened_engine(model) as engine:
        found = engine.find_model(model.served_name)
        return _embed(options, new_job(model=found), partial(jobs.compute_here, engine))


def _check_output(name: str) -> None:
    """Check that the name of the output fits what is written."""
    output = Path(name)
    suffix = output.suffix.lower()
    if is_url(name) and suffix == SUFFIX:
        raise UserError(
            f"--output {name}: give a folder of the store; each part is an object in it."
        )
    if suffix == SUFFIX and output.is_dir():
        raise UserError(f"{output} is a folder; give a file name, or another folder.")
    if suffix in OTHER_FORMATS and not output.is_dir():
        raise UserError(
            f"--output {output.name}: only Parquet is supported. Give a file name that ends in "
            f"{SUFFIX}, or a folder."
        )


def job_task(options: EmbedOptions, model: ModelOptions) -> Any:
    """The task of the job."""
    from tipserve_cli.bulk.inputs import Columns  # noqa: PLC0415
    from tipserve_cli.bulk.rows import EmbedTask  # noqa: PLC0415

    names = tuple(dict.fromkeys(n.strip() for n in options.outputs.split(",") if n.strip()))
    unknown = [name for name in names if name not in IMAGE_OUTPUTS]
    if unknown or not names:
        known = ", ".join(IMAGE_OUTPUTS)
        raise UserError(f"--outputs {options.outputs!r} is invalid; choose from {known}.")
    return EmbedTask(
        outputs=names,
        dtype=options.dtype,
        columns=Columns(image=options.image_column, key=options.key_column),
        part_items=options.part_items,
        request={
            "normalize": options.normalize,
            "resolution": options.resolution,
            "fit": options.fit,
        },
        model=model.served_name,
    )


def _embed(options: EmbedOptions, job: Any, compute: Any) -> int:
    from tipserve_cli.bulk import job as jobs  # noqa: PLC0415
    from tipserve_cli.bulk.rows import count_rows  # noqa: PLC0415

    _check_outputs(job.task.outputs, job.model)
    if Path(options.output).suffix.lower() == SUFFIX:
        num_bad = jobs.write_file(job, Path(options.output), compute, overwrite=options.overwrite)
    else:
        folder = jobs.write_folder(job, options.output, compute, overwrite=options.overwrite)
        num_bad = len(folder.errors().splitlines())
        text = f"{options.output}: {count_rows(folder)} rows"
        jobs.report(text, num_bad, f"{folder.place}/{jobs.ERRORS_NAME}")
    return DONE_WITH_SKIPPED_IMAGES if num_bad and not options.allow_bad_items else DONE


def _check_outputs(outputs: Sequence[str], model: ModelInfo) -> None:
    """Check that the model has all outputs, before any image is read."""
    missing = [name for name in outputs if name not in model.outputs]
    if missing:
        raise UserError(
            f"{model.name} has no output {missing[0]!r}; it has {', '.join(model.outputs)}."
        )
