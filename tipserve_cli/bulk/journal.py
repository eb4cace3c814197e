"""Jobs with a line for each image file, which continue where they stopped.

Each image appends a line to a journal next to the output: its result, or why it was skipped. The
output is written from the journal once all images have a line.
"""

import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from model.files import LockHeld, LocksUnsupported, locked
from service.messages import ClassifyImagesRequest, SegmentImagesRequest
from tipserve_cli.bulk.embedding import readable
from tipserve_cli.bulk.inputs import Columns, InputError, InputImage, Inputs, Part, read_part
from tipserve_cli.bulk.output import JobError, compare_records, errors_file
from tipserve_cli.bulk.running import JobProgress
from tipserve_cli.engines.engine import ImageRefused, ModelSummary

T = TypeVar("T")
Line = dict[str, Any]
RECORD_VERSION: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesJob:
    """Everything that the file depends on.

    Attributes:
        inputs: Image files.
        root: Folder that names of files are relative to; None keeps them as given.
        request: The request for each image, without the image.
        model: Computes the results.
    """

    inputs: Inputs
    root: str | None
    request: SegmentImagesRequest | ClassifyImagesRequest
    model: ModelSummary

    @property
    def paths(self) -> tuple[str, ...]:
        """The image files, in order.

        Raises:
            InputError: The inputs are Parquet files or shards.
        """
        if any(part.kind != "files" for part in self.inputs.parts):
            raise InputError("Give image files or folders of them, no Parquet files or shards.")
        return tuple(path for part in self.inputs.parts for path in part.paths)

    def record(self) -> dict[str, Any]:
        """The record, which is compared when the job continues."""
        options = asdict(self.request)
        del options["images"], options["model"]
        inputs = {"digest": self.inputs.digest, "num_images": self.inputs.num_images}
        model = {"name": self.model.name, "fingerprint": self.model.fingerprint}
        record = {"version": RECORD_VERSION, "options": options, "model": model, "inputs": inputs}
        plain: dict[str, Any] = json.loads(json.dumps(record))
        return plain

    def file_name(self, path: str) -> str:
        """Name of an image in the file."""
        return readable(path if self.root is None else os.path.relpath(path, self.root))


def common_root(named: Sequence[str]) -> str | None:
    """The folder that names of files are relative to: the only one that is given."""
    return named[0] if len(named) == 1 and os.path.isdir(named[0]) else None


def journal_file(output: Path) -> Path:
    """The journal of an output."""
    return output.with_name(f"{output.name}.journal")


@contextmanager
def opened_journal(output: Path, job: FilesJob, *, overwrite: bool) -> Iterator["Journal"]:
    """The journal of a job, locked for this process.

    Raises:
        JobError: Another process has locked it, or it is of another job.
    """
    path = journal_file(output)
    lock = output.with_name(f".{output.name}.lock")
    try:
        with suppress(LocksUnsupported), locked(lock, wait=False):
            if overwrite:
                path.unlink(missing_ok=True)
            yield Journal(path, job.record(), output)
    except LockHeld as error:
        raise JobError(f"Another process writes {output}; wait until it ends.") from error
    finally:
        lock.unlink(missing_ok=True)


class Journal:
    """Lines of images, in order, after a line with the record of the job.

    Raises:
        JobError: The file is of another job.
    """

    def __init__(self, path: Path, record: dict[str, Any], output: Path) -> None:
        self.path = path
        if not path.exists() or not path.stat().st_size:
            path.write_text(json.dumps(record) + "\n", encoding="utf-8")
        # A line that a crash cut off is computed again.
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(path, len(whole))
        lines = whole.split(b"\n", maxsplit=1)
        found = json.loads(lines[0]) if lines[0] else None
        compare_records(found, record, str(output))
        self.num_images = whole.count(b"\n") - 1

    def append(self, lines: Iterator[Line]) -> None:
        """Write a line for each further image."""
        with self.path.open("a", encoding="utf-8") as file:
            for line in lines:
                file.write(json.dumps(line) + "\n")
                file.flush()

    def entries(self) -> Iterator[Line]:
        """The lines of the images."""
        with self.path.open(encoding="utf-8") as file:
            next(file)
            yield from map(json.loads, file)

    def good_entries(self) -> Iterator[Line]:
        """The lines of the images that were not skipped."""
        return (entry for entry in self.entries() if "error" not in entry)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work(Generic[T]):
    """What is computed for each image.

    Attributes:
        window: Images in flight that keep the engine busy.
        ask: Starts the computation of an image.
        describe: The members of the image's line.
        count: Results in a line, for the progress.
    """

    window: int
    ask: Callable[[bytes], "Future[T]"]
    describe: Callable[[T], Line]
    count: Callable[[Line], int] = lambda line: 1


def compute_lines(job: FilesJob, journal: Journal, work: Work[Any], progress: JobProgress) -> None:
    """Compute the images without a line in the journal.

    Raises:
        EngineError: The engine failed.
    """

    def counted(lines: Iterator[Line]) -> Iterator[Line]:
        for line in lines:
            is_bad = "error" in line
            progress.image_read()
            progress.part_written(0 if is_bad else work.count(line), int(is_bad))
            yield line

    journal.append(counted(_lines(job, job.paths[journal.num_images :], work)))


def _lines(job: FilesJob, paths: Sequence[str], work: Work[T]) -> Iterator[Line]:
    """A line for each image; as many images at a time as keep the engine busy."""
    in_flight: deque[tuple[InputImage, Future[T] | None]] = deque()
    try:
        for path in paths:
            if len(in_flight) >= work.window:
                yield _line(job, *in_flight.popleft(), work)
            (image,) = read_part(Part(number=0, kind="files", paths=(path,)), Columns())
            future = work.ask(image.data) if isinstance(image.data, bytes) else None
            in_flight.append((image, future))
        while in_flight:
            yield _line(job, *in_flight.popleft(), work)
    finally:
        for _, future in in_flight:
            if future is not None:
                future.cancel()


def _line(job: FilesJob, image: InputImage, future: "Future[T] | None", work: Work[T]) -> Line:
    name = job.file_name(image.source)
    if future is None:
        return {"file_name": name, "code": image.code, "error": image.problem}
    try:
        return {"file_name": name, **work.describe(future.result())}
    except ImageRefused as error:
        return {"file_name": name, "code": error.code, "error": str(error)}


def write_errors(output: Path, journal: Journal) -> int:
    """Write the skipped images beside the output; returns their number."""
    bad = [entry for entry in journal.entries() if "error" in entry]
    errors = errors_file(output)
    errors.unlink(missing_ok=True)
    if bad:
        errors.write_text("".join(json.dumps(entry) + "\n" for entry in bad), encoding="utf-8")
    return len(bad)
