"""Jobs over many images, which continue where they stopped.

A job writes a file for each part of its inputs into a folder, which may be one of an object store:

_tipserve.json            the record: what is computed from what
part-00000.parquet ...    rows; a part with a file is finished
_errors/part-00000.jsonl  the skipped images of a part, if there are any

If the output is one file, the parts lie beside it until they are joined.
"""

import json
import re
import shutil
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Final, Protocol

from model.files import LockHeld, LocksUnsupported, locked
from model.image_codec import ImageError
from model.stores import is_url
from tipserve_cli.bulk.inputs import Columns, InputImage, Inputs, Part, Skipped, read_part
from tipserve_cli.bulk.stores import Folder
from tipserve_cli.engine import Engine, UserError, reason_of, refuses_image
from tipserve_cli.model_options import ModelOptions, opened_engine
from tipserve_cli.program import DONE, DONE_WITH_SKIPPED_IMAGES
from tipserve_cli.progress import Advance, shown_progress
from tipserve_client import Client, ModelInfo, TipserveError

RECORD_VERSION: Final = 2
RECORD_NAME: Final = "_tipserve.json"
LOCK_NAME: Final = "_lock"
ERRORS_NAME: Final = "_errors"
PART_NAME: Final = re.compile(r"part-(\d+)\.(?:parquet|jsonl)")

Row = tuple[InputImage, Any]


class Task(Protocol):
    """What a job computes for each image, and how it is written. It can be pickled."""

    @property
    def suffix(self) -> str:
        """Of the files of parts."""

    @property
    def columns(self) -> Columns:
        """Of Parquet inputs."""

    def options(self) -> dict[str, Any]:
        """What the rows depend on, apart from inputs and model, as JSON values."""

    def ask(self, client: Client, image: bytes) -> Any:
        """The row of an image."""

    def name(self, image: InputImage) -> dict[str, str]:
        """How the list of skipped images names one."""

    def write(self, file: Path, rows: Iterator[Row], job: "Job") -> None:
        """Write the rows of a part."""

    def join(self, folder: "JobFolder", file: Path | None) -> str:
        """Write the output from all parts, unless it is their folder; returns what it has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Everything that the rows of the output depend on."""

    inputs: Inputs
    task: Task
    model: ModelInfo

    def record(self) -> dict[str, Any]:
        """The record, which is stored with the output and compared when the job continues."""
        model = {"fingerprint": self.model.package_digest, "embed_dim": self.model.embed_dim}
        return {
            "version": RECORD_VERSION,
            "options": self.task.options(),
            "model": {"name": self.model.name, **model},
            "inputs": {"digest": self.inputs.digest, "num_parts": len(self.inputs.parts)},
        }


# Computes missing parts into a folder, here or on other machines.
Compute = Callable[[Sequence[Part], "JobFolder", Advance], None]


def compute_here(
    engine: Engine, parts: Sequence[Part], folder: "JobFolder", advance: Advance
) -> None:
    """Compute parts and write them. After an error, the parts that were written stay."""
    job = folder.job

    def ask(item: tuple[Part, InputImage | None]) -> Any:
        return None if item[1] is None else _row(job.task, engine.client, item[1])

    # One window over all parts: while one is written, the next one keeps the engine busy.
    with (
        closing(_images(parts, job.task.columns)) as images,
        closing(engine.in_order(ask, images)) as answered,
    ):
        for part, answers in groupby(answered, key=lambda answer: answer[0][0]):
            advance(folder.write_part(part.number, answers))


def _images(parts: Sequence[Part], columns: Columns) -> Generator[tuple[Part, InputImage | None]]:
    """The images of all parts; None after the last one, since a part may have no image."""
    for part in parts:
        with closing(read_part(part, columns)) as images:
            for image in images:
                yield part, image
        yield part, None


def _row(task: Task, client: Client, image: InputImage) -> Any:
    try:
        return task.ask(client, image.read())
    except TipserveError as error:
        if not refuses_image(error):
            raise
        raise Skipped(reason_of(error), error.code) from error
    except ImageError as error:
        raise Skipped(f"{error}.", "invalid_image") from error


def compare_records(found: object, wanted: dict[str, Any], place: str) -> None:
    """Refuse an existing output of another job; the message names the first difference."""
    if found == wanted:
        return
    before = found if isinstance(found, dict) else {}
    sections = ("options", "model", "inputs") if before.get("version") == RECORD_VERSION else ()
    words = {"options": "with other options", "model": "by another model"}
    for section in sections:
        old, new = before.get(section), wanted[section]
        if old != new:
            raise UserError(
                f"{place} was started {words.get(section, 'from other inputs')} "
                f"({_difference(old, new)}). Use the same again, choose another output, or start "
                "again with --overwrite."
            )
    raise UserError(f"{place} was started by another version; start again with --overwrite.")


def _difference(old: object, new: dict[str, Any]) -> str:
    before = old if isinstance(old, dict) else {}
    name = next((name for name in new if before.get(name) != new[name]), "")
    return f"{name}: was {json.dumps(before.get(name))}, is now {json.dumps(new.get(name))}"


class JobFolder(Folder):
    """The folder with the parts of a job. `locked_folder` reserves it for one process."""

    def __init__(self, place: str, job: Job) -> None:
        super().__init__(place)
        self.job = job

    def start(self) -> None:
        """Start or continue a job. A job without a finished part may be replaced by another one."""
        names, record = self.names(), self.job.record()
        if RECORD_NAME in names:
            if self.finished():
                compare_records(_parsed(self.read(RECORD_NAME)), record, self.place)
        elif others := [name for name in names if name != LOCK_NAME]:
            raise UserError(
                f"{self.place} contains other files ({min(others)}); give an empty folder."
            )
        self.write(RECORD_NAME, json.dumps(record, indent=2) + "\n")
        self.tidy()

    def clear(self) -> None:
        """Remove the parts of a job; without a record, remove nothing. The record stays."""
        names = self.names()
        if RECORD_NAME not in names:
            return
        self.tidy()
        errors = (f"{ERRORS_NAME}/{name}" for name in self.names(ERRORS_NAME))
        for name in [*filter(PART_NAME.fullmatch, names), *errors]:
            self.remove(name)

    def finished(self) -> dict[int, str]:
        """Names of the finished parts by their numbers, in order."""
        matches = filter(None, map(PART_NAME.fullmatch, self.names()))
        return dict(sorted((int(match[1]), match[0]) for match in matches))

    def errors(self) -> bytes:
        """The skipped images of all finished parts, a line each."""
        finished = {_errors_name(number) for number in self.finished()}
        names = (f"{ERRORS_NAME}/{name}" for name in sorted(self.names(ERRORS_NAME)))
        return b"".join(self.read(name) for name in names if name in finished)

    def write_part(self, number: int, answers: Iterable[tuple[Any, "Future[Any]"]]) -> int:
        """Write a part from its images and their answers; returns the number of skipped images."""
        bad: list[dict[str, str]] = []

        def rows() -> Iterator[Row]:
            for (_, image), future in answers:
                if image is None:
                    continue
                try:
                    yield image, future.result()
                except Skipped as error:
                    named = self.job.task.name(image)
                    bad.append({**named, "code": error.code, "error": str(error)})

        with self.new_file(f"part-{number:05}{self.job.task.suffix}") as file:
            self.job.task.write(file, rows(), self.job)
            # The skipped images first, because the file with the rows marks the part as finished.
            errors = _errors_name(number)
            if bad:
                self.write(errors, "".join(f"{json.dumps(one)}\n" for one in bad))
            else:
                self.remove(errors)
        return len(bad)


def _errors_name(number: int) -> str:
    return f"{ERRORS_NAME}/part-{number:05}.jsonl"


def _parsed(record: bytes) -> object:
    try:
        return json.loads(record)
    except ValueError:
        return None


@contextmanager
def locked_folder(place: str, job: Job) -> Iterator[JobFolder]:
    """Create the folder if it is missing, and lock it; a folder of a store needs neither."""
    path = Path(place)
    with ExitStack() as stack:
        try:
            if not is_url(place):
                path.mkdir(parents=True, exist_ok=True)
                stack.enter_context(locked(path / LOCK_NAME, wait=False))
        except LocksUnsupported:
            # Two jobs that write to one folder are not detected on such a file system.
            pass
        except LockHeld as error:
            raise UserError(f"Another process writes to {path}; wait until it ends.") from error
        except OSError as error:
            raise UserError(f"{path} cannot be written to: {error.strerror}.") from error
        yield JobFolder(place, job)


def errors_file(file: Path) -> Path:
    """File with the skipped images, if there are any; that of no other output."""
    name = file.stem if file.suffix.lower() == ".parquet" else file.name
    return file.with_name(f"{name}.errors.jsonl")


def run_here(
    task: Task, inputs: Inputs, model: ModelOptions, write: Callable[[Job, Compute], int]
) -> int:
    """Run or continue a job by the model here or on a server; returns the exit status."""
    with opened_engine(model) as engine:
        job = Job(inputs=inputs, task=task, model=engine.find_model(model.served_name))
        num_bad = write(job, partial(compute_here, engine))
    return DONE_WITH_SKIPPED_IMAGES if num_bad else DONE


def write_folder(job: Job, compute: Compute, *, place: str, overwrite: bool) -> int:
    """Write or complete the folder of a job, and say what it has.

    Returns:
        The number of skipped images.
    """
    with locked_folder(place, job) as folder:
        _complete(folder, compute, overwrite=overwrite)
    num_bad = len(folder.errors().splitlines())
    _report(f"{place}: {job.task.join(folder, None)}", num_bad, f"{folder.place}/{ERRORS_NAME}")
    return num_bad


def write_file(job: Job, compute: Compute, *, place: str, overwrite: bool) -> int:
    """Write or complete the output of a job that is one file; as `write_folder`."""
    file = Path(place)
    errors = errors_file(file)
    parts = file.with_name(f"{file.name}.parts")
    if overwrite:
        file.unlink(missing_ok=True)
    if file.exists():
        raise UserError(f"{file} exists; choose another output, or replace it by --overwrite.")
    with locked_folder(str(parts), job) as folder:
        _complete(folder, compute, overwrite=overwrite)
        skipped = folder.errors()
        if skipped:
            errors.write_bytes(skipped)
        else:
            errors.unlink(missing_ok=True)
        text = job.task.join(folder, file)
    shutil.rmtree(parts, ignore_errors=True)
    num_bad = len(skipped.splitlines())
    _report(f"{file}: {text}", num_bad, errors)
    return num_bad


def _complete(folder: JobFolder, compute: Compute, *, overwrite: bool) -> None:
    if overwrite:
        folder.clear()
    folder.start()
    finished = folder.finished()
    missing = [part for part in folder.job.inputs.parts if part.number not in finished]
    if missing:
        with shown_progress("part", len(folder.job.inputs.parts), len(finished)) as advance:
            compute(missing, folder, advance)


def _report(text: str, num_bad: int, errors: object) -> None:
    """Say what the output has, and on standard error where the skipped images are listed."""
    print(text)
    if num_bad:
        print(f"{errors}: {num_bad} images were skipped", file=sys.stderr)
