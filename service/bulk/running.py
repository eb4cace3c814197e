"""Computes the parts of a job that are missing, in this process."""

import json
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any, Final, Protocol

import pyarrow as pa

from service.bulk.embedding import embed_items, row_schema
from service.bulk.inputs import Item, Part, read_part
from service.bulk.output import METADATA_KEY, Job, OutputFolder
from service.engines.engine import Engine

# While one part ends and is written, the next keeps the engine busy.
PARTS_AT_ONCE: Final = 2


class Progress(Protocol):
    """Told how far a job is. Thread-safe."""

    def item(self) -> None:
        """One more image has been read."""

    def part(self, part: Part, num_rows: int, num_bad: int) -> None:
        """One more part is written."""


class Stopped(Exception):
    """The other part failed, or a signal ended the wait for both; what is written stays."""


def job_schema(job: Job) -> pa.Schema:
    """Columns of the job's output, with its record, so that a file says what it is."""
    metadata = {METADATA_KEY.decode(): json.dumps(job.record())}
    options = job.options
    return row_schema(options.request.outputs, job.model.embed_dim, options.dtype, metadata)


def missing_parts(job: Job, folder: OutputFolder) -> list[Part]:
    """Parts that are not written yet."""
    done = folder.done()
    return [part for part in job.inputs.parts if part.number not in done]


def run_here(engine: Engine, job: Job, folder: OutputFolder, progress: Progress) -> None:
    """Compute what is missing.

    Args:
        engine: Who computes.
        job: What is computed.
        folder: Where it is written.
        progress: Told how far it is.

    Raises:
        EngineError: The engine cannot go on; what is written stays.
        InputError: An input is not as it was said to be.
        OSError: The output cannot be written.
    """
    schema = job_schema(job)
    stop = threading.Event()

    def compute(part: Part) -> None:
        items = _told(read_part(part, job.options.columns), progress)
        outcomes = embed_items(engine, items, job.options.request, check)
        num_rows, num_bad = folder.write_part(part.number, outcomes, schema)
        progress.part(part, num_rows, num_bad)

    def check() -> None:
        if stop.is_set():
            raise Stopped

    with ThreadPoolExecutor(PARTS_AT_ONCE, "part") as threads:
        parts = [threads.submit(compute, part) for part in missing_parts(job, folder)]
        try:
            wait(parts, return_when=FIRST_EXCEPTION)
        finally:
            # Whether one failed or a signal came: what is left ends at its next image. Where all
            # is done, nothing is left.
            stop.set()
            for future in parts:
                future.cancel()
    _raise_first(parts)


def _told(items: Iterable[Item], progress: Progress) -> Iterator[Item]:
    for item in items:
        yield item
        progress.item()


def _raise_first(parts: Iterable[Any]) -> None:
    """Raise what went wrong first; that others stopped then is no news."""
    errors = [future.exception() for future in parts if not future.cancelled()]
    found = [error for error in errors if error is not None]
    for error in found:
        if not isinstance(error, Stopped):
            raise error
    if found:
        raise found[0]
