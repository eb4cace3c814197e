"""`tipserve embed`: embeddings of many images as Parquet, here, by a server, or on Ray."""

import argparse
import importlib
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from service.bulk.job import Job, JobError, check_outputs
from service.bulk.output import OutputFolder, locked_folder
from service.bulk.parts import Inputs, find_inputs
from service.bulk.running import Progress, job_schema, missing_parts, run_here
from service.bulk.single_file import (
    clear_file,
    count_rows,
    errors_file,
    is_finished,
    join_parts,
    parts_folder,
)
from service.commands.embed_options import job_options, parse_options
from service.commands.exit_status import DONE, DONE_WITHOUT_SOME
from service.commands.options import loading_flags, opened_engine, served_name
from service.commands.progress import new_progress
from service.engines.choice import settings_for
from service.engines.engine import Engine, find_model
from service.engines.in_process import open_manifest, summarize_unloaded

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
