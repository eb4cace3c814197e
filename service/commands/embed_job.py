"""The work of `tipserve embed`, apart from its command line, since it needs pyarrow."""

import argparse
import importlib
import shutil
import sys
from pathlib import Path
from typing import Final

from service.bulk.inputs import Columns, find_inputs
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
from service.bulk.running import JobProgress, job_schema, missing_parts, run_here
from service.commands.program import (
    DONE,
    DONE_WITH_SKIPPED_IMAGES,
    loading_flags,
    opened_engine,
    served_name,
)
from service.commands.progress import shown_progress
from service.engines.choice import settings_for
from service.engines.engine import Engine, EngineError, find_model
from service.engines.in_process import open_manifest, summarize
from service.messages import IMAGE_OUTPUTS, EmbedImagesRequest

SUFFIX: Final = ".parquet"
# A folder with such a suffix is most likely a mistake: the user expects a file of this format.
OTHER_FORMATS: Final = {
    *(".arrow", ".csv", ".feather", ".h5", ".hdf5", ".json", ".jsonl", ".npy", ".npz", ".pickle"),
    *(".pkl", ".pq", ".pt", ".safetensors", ".tar", ".tsv", ".txt", ".zip"),
}


def embed(options: argparse.Namespace) -> int:
    """Run or continue a job; returns the exit status.

    Raises:
        UserError: The job cannot be done as requested.
    """
    _check_output(options.output)
    chosen = job_options(options)
    inputs = find_inputs(options.paths, sys.stdin, chosen.part_items)
    if options.ray is not None:
        if options.url is not None:
            raise JobError("--ray loads the model on the cluster; remove --url.")
        model = summarize(open_manifest(settings_for(loading_flags(options))))
        job = Job(inputs=inputs, options=chosen, model=model)
        return _embed(options, job, None)
    with opened_engine(options) as engine:
        model = find_model(engine, served_name(options))
        return _embed(options, Job(inputs=inputs, options=chosen, model=model), engine)


def _check_output(output: Path) -> None:
    """Check that the name of the output fits what is written."""
    suffix = output.suffix.lower()
    if suffix == SUFFIX and output.is_dir():
        raise JobError(f"{output} is a folder; give a file name, or another folder.")
    if suffix in OTHER_FORMATS and not output.is_dir():
        raise JobError(
            f"--output {output.name}: only Parquet is supported. Give a file name that ends in "
            f"{SUFFIX}, or a folder."
        )


def _embed(options: argparse.Namespace, job: Job, engine: Engine | None) -> int:
    check_outputs(job.options, job.model)
    file: Path | None = options.output if options.output.suffix.lower() == SUFFIX else None
    if file is not None and options.overwrite:
        clear_file(file)
    if file is not None and is_finished(file, job.record()):
        shutil.rmtree(parts_folder(file), ignore_errors=True)
        return _report(options, *count_rows(file), errors_file(file))
    with locked_folder(options.output if file is None else parts_folder(file)) as folder:
        if options.overwrite:
            folder.clear()
        folder.start(job.record())
        _compute(options, job, folder, engine)
        totals = folder.totals()
        if file is None:
            return _report(options, *totals, folder.errors_folder)
        join_parts(folder, file, job_schema(job))
    return _report(options, *totals, errors_file(file))


def _compute(
    options: argparse.Namespace, job: Job, folder: OutputFolder, engine: Engine | None
) -> None:
    missing = missing_parts(job, folder)
    if not missing:
        return
    num_parts = len(job.inputs.parts)
    num_images = None
    if engine is not None and job.inputs.num_images is not None:
        # Roughly, because the last part may be smaller.
        num_images = round(job.inputs.num_images * len(missing) / num_parts)
    with shown_progress(num_parts, num_parts - len(missing), num_images) as progress:
        if engine is None:
            _run_on_ray(options, job, folder, progress)
        else:
            run_here(engine, job, folder, progress)


def _run_on_ray(
    options: argparse.Namespace, job: Job, folder: OutputFolder, progress: JobProgress
) -> None:
    # Imported here, because Ray is an optional dependency, and slow to import.
    on_ray = importlib.import_module("service.bulk.on_ray")
    cluster = on_ray.RayOptions(
        address=options.ray or None,
        workers=options.workers,
        cpus=options.cpus_per_worker,
        gpus=options.gpus_per_worker,
    )
    on_ray.run_on_ray(job, folder, progress, flags=loading_flags(options), options=cluster)


def _report(options: argparse.Namespace, num_rows: int, num_bad: int, errors: Path) -> int:
    print(f"{options.output}: {num_rows} rows")
    if num_bad == 0:
        return DONE
    print(f"{errors}: {num_bad} images were skipped", file=sys.stderr)
    return DONE if options.allow_bad_items else DONE_WITH_SKIPPED_IMAGES


def job_options(options: argparse.Namespace) -> JobOptions:
    """Make the options of the job.

    Raises:
        EngineError: An output is unknown.
    """
    names = tuple(dict.fromkeys(n.strip() for n in options.outputs.split(",") if n.strip()))
    unknown = [name for name in names if name not in IMAGE_OUTPUTS]
    if unknown or not names:
        known = ", ".join(IMAGE_OUTPUTS)
        raise EngineError(f"--outputs {options.outputs!r} is invalid; choose from {known}.")
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
