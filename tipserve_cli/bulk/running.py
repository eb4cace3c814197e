"""Computes the missing parts of a job in this process."""

import json
import threading
from collections.abc import Generator, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import closing
from typing import Any, Final, Protocol

import pyarrow as pa

from tipserve_cli.bulk.embedding import embed_images, row_schema
from tipserve_cli.bulk.inputs import InputImage, Part, read_part
from tipserve_cli.bulk.output import METADATA_KEY, Job, OutputFolder
from tipserve_cli.engines.engine import Engine

# While one part is written, the next one keeps the engine busy.
CONCURRENT_PARTS: Final = 2


class JobProgress(Protocol):
    """Shows the progress of a job. Only one thread calls it at a time."""

    def image_read(self) -> None:
        """Another image was read."""

    def part_written(self, num_rows: int, num_bad: int) -> None:
        """Another part was written, with this many rows and skipped images."""


class Stopped(Exception):
    """The job stops, because another part failed or a signal arrived."""


def job_schema(job: Job) -> pa.Schema:
    """Columns of the output; the job's record is in the metadata."""
    metadata = {METADATA_KEY.decode(): json.dumps(job.record())}
    options = job.options
    return row_schema(options.request.outputs, job.model.embed_dim, options.dtype, metadata)


def missing_parts(job: Job, folder: OutputFolder) -> list[Part]:
    """Parts without a file."""
    finished = folder.finished_parts()
    return [part for part in job.inputs.parts if part.number not in finished]


def run_here(engine: Engine, job: Job, folder: OutputFolder, progress: JobProgress) -> None:
    """Compute the missing parts. After an error, the parts that were written stay.

    Args:
        engine: Computes the embeddings.
        job: Inputs, options and model.
        folder: Receives the parts.
        progress: Notified of each image and part.

    Raises:
        EngineError: The engine failed.
        InputError: An input is invalid.
        OSError: The output cannot be written.
    """
    schema = job_schema(job)
    stop = threading.Event()
    lock = threading.Lock()

    def compute(part: Part) -> None:
        with (
            closing(images(part)) as read,
            closing(embed_images(engine, read, job.options.request, check)) as outcomes,
        ):
            num_rows, num_bad = folder.write_part(part.number, outcomes, schema)
        with lock:
            progress.part_written(num_rows, num_bad)

    def images(part: Part) -> Generator[InputImage]:
        with closing(read_part(part, job.options.columns)) as read:
            for image in read:
                yield image
                with lock:
                    progress.image_read()

    def check() -> None:
        if stop.is_set():
            raise Stopped

    with ThreadPoolExecutor(CONCURRENT_PARTS, "part") as threads:
        parts = [threads.submit(compute, part) for part in missing_parts(job, folder)]
        try:
            wait(parts, return_when=FIRST_EXCEPTION)
        finally:
            # After a failure or a signal, the running parts stop at their next image.
            stop.set()
            for future in parts:
                future.cancel()
    _raise_first(parts)


def _raise_first(parts: Iterable[Any]) -> None:
    """Raise the error that stopped the other parts, not their `Stopped`."""
    errors = [future.exception() for future in parts if not future.cancelled()]
    found = [error for error in errors if error is not None]
    for error in found:
        if not isinstance(error, Stopped):
            raise error
    if found:
        raise found[0]
