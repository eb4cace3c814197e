"""The work of `tipserve embed`, apart from its command line, since it needs pyarrow."""

import importlib
import shutil
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from model.stores import is_url
from service.messages import IMAGE_OUTPUTS, EmbedImagesRequest
from tipserve_cli.bulk.inputs import Columns, find_inputs
from tipserve_cli.bulk.output import (
    ERRORS_NAME,
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
from tipserve_cli.bulk.running import JobProgress, job_schema, missing_parts, run_here
from tipserve_cli.commands.embed import EmbedOptions
from tipserve_cli.commands.model_options import ModelOptions, opened_engine
from tipserve_cli.commands.program import DONE, DONE_WITH_SKIPPED_IMAGES
from tipserve_cli.commands.progress import shown_progress
from tipserve_cli.engines.choice import settings_for
from tipserve_cli.engines.engine import EngineError, find_model
from tipserve_cli.engines.in_process import open_manifest, summarize

Run = Callable[[Job, OutputFolder, JobProgress], None]
SUFFIX: Final = ".parquet"
# A folder with such a suffix is most likely a mistake: the user expects a file of this format.
OTHER_FORMATS: Final = {
    *(".arrow", ".csv", ".feather", ".h5", ".hdf5", ".json", ".jsonl", ".npy", ".npz", ".pickle"),
    *(".pkl", ".pq", ".pt", ".safetensors", ".tar", ".tsv", ".txt", ".zip"),
}


def embed(paths: Sequence[str], options: EmbedOptions, model: ModelOptions) -> int:
    """Run or continue a job; returns the exit status.

    Raises:
        UserError: The job cannot be done as requested.
    """
    _check_output(options.output)
    chosen = job_options(options, model)
    inputs = find_inputs(paths, sys.stdin, chosen.part_items)
    if options.ray is not None:
        if model.url:
            raise JobError("--ray loads the model on the cluster; remove --url.")
        found = summarize(open_manifest(settings_for(model.loading_flags)))
        job = Job(inputs=inputs, options=chosen, model=found)
        return _embed(options, job, partial(_run_on_ray, options, flags=model.loading_flags), None)
    with opened_engine(model) as engine:
        found = find_model(engine, model.served_name)
        job = Job(inputs=inputs, options=chosen, model=found)
        return _embed(options, job, partial(run_here, engine), inputs.num_images)


def _check_output(name: str) -> None:
    """Check that the name of the output fits what is written."""
    output = Path(name)
    suffix = output.suffix.lower()
    if is_url(name) and suffix == SUFFIX:
        raise JobError(
            f"--output {name}: give a folder of the store; each part is an object in it."
        )
    if suffix == SUFFIX and output.is_dir():
        raise JobError(f"{output} is a folder; give a file name, or another folder.")
    if suffix in OTHER_FORMATS and not output.is_dir():
        raise JobError(
            f"--output {output.name}: only Parquet is supported. Give a file name that ends in "
            f"{SUFFIX}, or a folder."
        )


def _embed(options: EmbedOptions, job: Job, run: Run, num_images: int | None) -> int:
    check_outputs(job.options, job.model)
    output = Path(options.output)
    file = output if output.suffix.lower() == SUFFIX else None
    if file is not None and options.overwrite:
        clear_file(file)
    if file is not None and is_finished(file, job.record()):
        shutil.rmtree(parts_folder(file), ignore_errors=True)
        return _report(options, *count_rows(file), errors_file(file))
    with locked_folder(options.output if file is None else parts_folder(file)) as folder:
        if options.overwrite:
            folder.clear()
        folder.start(job.record())
        _compute(job, folder, run, num_images)
        totals = folder.totals()
        if file is None:
            return _report(options, *totals, f"{folder.place}/{ERRORS_NAME}")
        join_parts(folder, file, job_schema(job))
    return _report(options, *totals, errors_file(file))


def _compute(job: Job, folder: OutputFolder, run: Run, num_images: int | None) -> None:
    """Run the missing parts; `num_images` is None if `run` reports parts only."""
    missing = missing_parts(job, folder)
    if not missing:
        return
    num_parts = len(job.inputs.parts)
    if num_images is not None:
        # Roughly, because the last part may be smaller.
        num_images = round(num_images * len(missing) / num_parts)
    with shown_progress(num_parts, num_parts - len(missing), num_images) as progress:
        run(job, folder, progress)


def _run_on_ray(
    options: EmbedOptions,
    job: Job,
    folder: OutputFolder,
    progress: JobProgress,
    *,
    flags: Sequence[str],
) -> None:
    # Imported here, because Ray is an optional dependency, and slow to import.
    on_ray = importlib.import_module("tipserve_cli.bulk.on_ray")
    cluster = on_ray.RayOptions(
        address=options.ray if isinstance(options.ray, str) else None,
        workers=options.workers,
        cpus=options.cpus_per_worker,
        gpus=options.gpus_per_worker,
    )
    on_ray.run_on_ray(job, folder, progress, flags=flags, options=cluster)


def _report(options: EmbedOptions, num_rows: int, num_bad: int, errors: object) -> int:
    print(f"{options.output}: {num_rows} rows")
    if num_bad == 0:
        return DONE
    print(f"{errors}: {num_bad} images were skipped", file=sys.stderr)
    return DONE if options.allow_bad_items else DONE_WITH_SKIPPED_IMAGES


def job_options(options: EmbedOptions, model: ModelOptions) -> JobOptions:
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
        model=model.served_name,
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
