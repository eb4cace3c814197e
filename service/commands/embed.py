"""`tipserve embed`: embed images or texts in bulk."""

import argparse
import importlib
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, get_args

from service.bulk.embedding import Dtype
from service.bulk.inputs import Columns, Inputs, find_inputs
from service.bulk.output import (
    Job,
    JobError,
    JobOptions,
    OutputFolder,
    check_outputs,
    clear_file,
    count_rows,
    errors_file,
    is_finished,
    join_parts,
    locked_folder,
    parts_folder,
)
from service.bulk.running import Progress, job_schema, missing_parts, run_here
from service.commands.program import (
    DONE,
    DONE_WITHOUT_SOME,
    add_engine_options,
    loading_flags,
    new_parser,
    opened_engine,
    served_name,
)
from service.commands.progress import new_progress
from service.engines.choice import settings_for
from service.engines.engine import Engine, EngineError, find_model
from service.engines.in_process import open_manifest, summarize_unloaded
from service.messages import IMAGE_OUTPUTS, EmbedImagesRequest

# The command line of `tipserve embed`.


def parse_options(arguments: list[str]) -> argparse.Namespace:
    """Read a command line.

    Raises:
        SystemExit: It is wrong, or `--help`.
    """
    parser = new_parser(
        "embed",
        "Writes embeddings of images as Parquet: one row each with key, source, height, width\n"
        "and the outputs. What cannot be read or decoded is listed beside the output. A command\n"
        "that was interrupted goes on where it stopped when it is given again.",
        (
            "photos/ -o photos.parquet",
            "'photos/**/*.jpg' -o photos.parquet --outputs cls1,patches --dtype float16",
            "photos/ -o photos.parquet --url grpc://localhost:8001",
            "shards/ -o embeddings/ --ray --workers 8 --gpus-per-worker 1",
            "rows.parquet -o out.parquet --image-column image --key-column id",
        ),
    )
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="images, folders, patterns, Parquet files or .tar shards (not mixed); - reads a "
        "list from standard input",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        help="a file that ends in .parquet, or a folder that gets a file for each part",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="begin anew instead of going on or refusing"
    )
    parser.add_argument(
        "--allow-bad-items", action="store_true", help="exit with 0 also where some were bad"
    )
    _add_computing(parser)
    _add_reading(parser)
    add_engine_options(parser)
    _add_ray(parser)
    return parser.parse_args(arguments)


def _add_computing(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is computed")
    group.add_argument(
        "--outputs",
        default=",".join(EmbedImagesRequest.outputs),
        help=f"of {', '.join(IMAGE_OUTPUTS)}, with commas between (default: %(default)s)",
    )
    group.add_argument(
        "--no-normalize",
        dest="normalize",
        action="store_false",
        help="leave embeddings as the model has them; else they have unit length",
    )
    group.add_argument("--resolution", type=int, help="short side in pixels, as the model sees it")
    group.add_argument("--fit", choices=("squash", "aspect"), default=EmbedImagesRequest.fit)
    group.add_argument("--dtype", choices=get_args(Dtype), default=get_args(Dtype)[0])


def _add_reading(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how it is read and split")
    group.add_argument(
        "--image-column",
        default=Columns().image,
        help="of Parquet: images, paths, or structs of both (default: %(default)s)",
    )
    group.add_argument("--key-column", help="of Parquet: what becomes the key")
    group.add_argument(
        "--part-items",
        type=_positive,
        default=512,
        help="images that are written, and computed anew, together (default: %(default)s); a "
        "shard is always one part",
    )


def _add_ray(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("on Ray, which reads, decodes and embeds on many machines")
    group.add_argument(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="a cluster; without an address the one of RAY_ADDRESS, or one that is started here",
    )
    group.add_argument(
        "--workers", type=_positive, default=1, help="copies of the model (default: %(default)s)"
    )
    group.add_argument("--cpus-per-worker", type=float, default=1.0, help="(default: %(default)s)")
    group.add_argument("--gpus-per-worker", type=float, default=0.0, help="(default: %(default)s)")


def job_options(options: argparse.Namespace) -> JobOptions:
    """What is computed.

    Raises:
        EngineError: The outputs cannot be read.
    """
    names = tuple(dict.fromkeys(n.strip() for n in options.outputs.split(",") if n.strip()))
    unknown = [name for name in names if name not in IMAGE_OUTPUTS]
    if unknown or not names:
        known = ", ".join(IMAGE_OUTPUTS)
        raise EngineError(f"--outputs takes {known}, with commas between, not {options.outputs}.")
    request = EmbedImagesRequest(
        images=(),
        model=served_name(options),
        outputs=names,
        normalize=options.normalize,
        resolution=options.resolution,
        fit=options.fit,
    )
    return JobOptions(
        request=request,
        dtype=options.dtype,
        columns=Columns(image=options.image_column, key=options.key_column),
        part_items=options.part_items,
    )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


# `tipserve embed`: embeddings of many images as Parquet, here, by a server, or on Ray.

SUFFIX: Final = ".parquet"
# What a folder is hardly called, but a file that somebody hopes for.
OTHER_FORMATS: Final = {
    *(".arrow", ".csv", ".feather", ".h5", ".hdf5", ".json", ".jsonl", ".npy", ".npz", ".pickle"),
    *(".pkl", ".pq", ".pt", ".safetensors", ".tar", ".tsv", ".txt", ".zip"),
}


def run(arguments: Sequence[str]) -> int:
    """Run the command; returns the exit status.

    Raises:
        UserError: It cannot be done; the sentence says what to change.
        SystemExit: A wrong command line, or `--help`.
    """
    options = parse_options(list(arguments))
    _check_output(options.output)
    chosen = job_options(options)
    inputs = find_inputs(options.paths, sys.stdin, chosen.part_items)
    if options.ray is not None:
        if options.url is not None:
            raise JobError("--ray loads the model on the cluster; leave out --url.")
        model = summarize_unloaded(open_manifest(settings_for(loading_flags(options))))
        job = Job(inputs=inputs, options=chosen, model=model)
        return _embed(options, job, None)
    with opened_engine(options) as engine:
        model = find_model(engine, served_name(options))
        return _embed(options, Job(inputs=inputs, options=chosen, model=model), engine)


def _check_output(output: Path) -> None:
    """Refuse a name that promises what is not written."""
    suffix = output.suffix.lower()
    if suffix == SUFFIX and output.is_dir():
        raise JobError(f"{output} is a folder; name a file, or another folder.")
    if suffix in OTHER_FORMATS and not output.is_dir():
        raise JobError(
            f"Embeddings are written as Parquet; let --output end in {SUFFIX}, or name a folder, "
            f"not {output.name}."
        )


def _embed(options: argparse.Namespace, job: Job, engine: Engine | None) -> int:
    check_outputs(job.options, job.model)
    file: Path | None = options.output if options.output.suffix.lower() == SUFFIX else None
    if file is not None and options.overwrite:
        clear_file(file)
    if file is not None and is_finished(file, job.record()):
        shutil.rmtree(parts_folder(file), ignore_errors=True)
        return _tell(options, *count_rows(file), errors_file(file))
    with locked_folder(options.output if file is None else parts_folder(file)) as folder:
        if options.overwrite:
            folder.clear()
        folder.begin(job.record())
        _compute(options, job, folder, engine)
        totals = folder.totals()
        if file is None:
            return _tell(options, *totals, folder.errors_folder)
        join_parts(folder, file, job_schema(job))
    return _tell(options, *totals, errors_file(file))


def _compute(
    options: argparse.Namespace, job: Job, folder: OutputFolder, engine: Engine | None
) -> None:
    missing = missing_parts(job, folder)
    if not missing:
        return
    num_parts = len(job.inputs.parts)
    num_items = _num_items(job.inputs, len(missing)) if engine is not None else None
    with new_progress(num_parts, num_parts - len(missing), num_items) as progress:
        if engine is None:
            _run_on_ray(options, job, folder, progress)
        else:
            run_here(engine, job, folder, progress)


def _run_on_ray(
    options: argparse.Namespace, job: Job, folder: OutputFolder, progress: Progress
) -> None:
    # Imported only where it is asked for: it is large, and an extra.
    on_ray = importlib.import_module("service.bulk.on_ray")
    cluster = on_ray.RayOptions(
        address=options.ray or None,
        workers=options.workers,
        cpus=options.cpus_per_worker,
        gpus=options.gpus_per_worker,
    )
    on_ray.run_on_ray(job, folder, progress, flags=loading_flags(options), options=cluster)


def _num_items(inputs: Inputs, num_missing: int) -> int | None:
    """Images that are still to be read, but for what the last part has less."""
    if inputs.num_items is None:
        return None
    return round(inputs.num_items * num_missing / len(inputs.parts))


def _tell(options: argparse.Namespace, num_rows: int, num_bad: int, errors: Path) -> int:
    print(f"{options.output}: {num_rows} rows")
    if num_bad == 0:
        return DONE
    print(f"{errors}: {num_bad} items could not be used", file=sys.stderr)
    return DONE if options.allow_bad_items else DONE_WITHOUT_SOME
