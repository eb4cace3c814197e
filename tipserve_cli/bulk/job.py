"""Jobs over many images, which continue where they stopped.

A job writes a file for each part of its inputs into a folder, which may be one of an object store:

_tipserve.json            the record: what is computed from what
part-00000.parquet ...    rows; a part with a file is finished
_errors/part-00000.jsonl  the skipped images of a part, if there are any

If the output is one file, the parts lie beside it until they are joined.
"""

import json
import os
import re
import shutil
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from fsspec.implementations.local import LocalFileSystem

from model.files import TEMPORARY_SUFFIX, LockHeld, LocksUnsupported, atomic_file, locked
from model.image_codec import ImageError
from model.stores import is_url
from tipserve_cli.bulk.inputs import Columns, InputImage, Inputs, Part, Skipped, read_part
from tipserve_cli.bulk.stores import explained, open_place
from tipserve_cli.engine import Engine, UserError, reason_of, refuses_image
from tipserve_cli.model_options import ModelOptions, opened_engine
from tipserve_cli.program import DONE, DONE_WITH_SKIPPED_IMAGES
from tipserve_cli.progress import Advance, shown_progress
from tipserve_client import Client, TipserveError

RECORD_VERSION: Final = 2
RECORD_NAME: Final = "_tipserve.json"
LOCK_NAME: Final = "_lock"
ERRORS_NAME: Final = "_errors"
PART_NAME: Final = re.compile(r"part-(\d+)\.(?:parquet|npz|jsonl)")
# Sections of the record, and what a difference in one means.
DIFFERENCES: Final = {
    "version": "by another version",
    "options": "with other options",
    "model": "by another model",
    "inputs": "from other inputs",
}

Row = tuple[InputImage, Any]


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """What a job computes for each image, and how it is written.

    Attributes:
        request: Options of the client, as JSON values.
        model: Name of the served model; None is the only one.
        columns: Of Parquet inputs.
        suffix: Of the files of parts.
    """

    request: Mapping[str, Any]
    model: str | None = None
    columns: Columns = field(default_factory=Columns)
    suffix: str = ".jsonl"

    @property
    def asked(self) -> dict[str, Any]:
        """Options of the client, with the model."""
        return {**self.request, "model": self.model}

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """What the rows depend on, apart from inputs and model, as JSON values."""

    @abstractmethod
    def row(self, client: Client, image: InputImage) -> Any:
        """Read an image, and ask for its row."""

    @abstractmethod
    def name(self, image: InputImage) -> dict[str, str]:
        """How the list of skipped images names one."""

    @abstractmethod
    def write(self, file: Path, rows: Iterator[Row], job: "Job") -> None:
        """Write the rows of a part."""

    def stored_record(self, file: Path) -> object:
        """The record in a finished output; None where its format holds none."""
        del file
        return None

    @abstractmethod
    def join(self, folder: "JobFolder", file: Path | None) -> str:
        """Write the output from all parts, unless it is their folder; returns what it has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Everything that the rows of the output depend on.

    Attributes:
        inputs: The images.
        task: What is computed. Ray pickles it.
        model: Its `name`, `fingerprint` and `embed_dim`.
    """

    inputs: Inputs
    task: Task
    model: Mapping[str, Any]

    def record(self) -> dict[str, Any]:
        """The record, which is stored with the output and compared when the job continues."""
        return {
            "version": RECORD_VERSION,
            "options": self.task.options(),
            "model": dict(self.model),
            "inputs": {"digest": self.inputs.digest, "num_parts": len(self.inputs.parts)},
        }


# Computes missing parts into a folder, here or on other machines.
Compute = Callable[[Sequence[Part], "JobFolder", Advance], None]


def compute_here(
    engine: Engine, parts: Sequence[Part], folder: "JobFolder", advance: Advance
) -> None:
    """Compute parts and write them. After an error, the parts that were written stay."""
    task = folder.job.task

    def ask(item: tuple[Part, InputImage | None]) -> Any:
        return None if item[1] is None else _row(task, engine.client, item[1])

    # One window over all parts: while one is written, the next one keeps the engine busy.
    with (
        closing(_images(parts, task.columns)) as images,
        closing(engine.in_order(ask, images)) as answered,
    ):
        for part, answers in groupby(answered, key=lambda answer: answer[0][0]):
            if part.num_images is None:
                advance(folder.write_part(part.number, answers))
            else:
                folder.write_part(part.number, _counted(answers, advance))


def _counted(
    answers: Iterable[tuple[Any, "Future[Any]"]], advance: Advance
) -> Iterator[tuple[Any, "Future[Any]"]]:
    """The same answers; the progress counts each image when it is taken."""
    for (part, image), future in answers:
        yield (part, image), future
        if image is not None:
            advance(isinstance(future.exception(), Skipped))


def _images(parts: Sequence[Part], columns: Columns) -> Generator[tuple[Part, InputImage | None]]:
    """The images of all parts; None after the last one, since a part may have no image."""
    for part in parts:
        with closing(read_part(part, columns)) as images:
            for image in images:
                yield part, image
        yield part, None


def _row(task: Task, client: Client, image: InputImage) -> Any:
    try:
        return task.row(client, image)
    except TipserveError as error:
        if not refuses_image(error):
            raise
        raise Skipped(reason_of(error), error.code) from error
    except ImageError as error:
        raise Skipped(f"{error}.", "invalid_image") from error


class JobFolder:
    """The folder with the parts of a job. A file appears whole, by a rename or an upload.

    Attributes:
        place: Path or URL of the folder.
        job: What is computed.
    """

    def __init__(self, place: str, job: Job) -> None:
        self.place, self.job = place.rstrip("/"), job
        self._files, self._root = open_place(place)

    def call(self, method: str, name: str, **options: Any) -> Any:
        """Call a method of fsspec's file system on a file; the errors of a store name the file."""
        with explained(f"{self.place}/{name}"):
            return getattr(self._files, method)(f"{self._root}/{name}".rstrip("/"), **options)

    def names(self, folder: str = "") -> list[str]:
        """Names in the folder or in a folder of it; none if there is no such folder."""
        self._files.invalidate_cache()  # other machines write parts
        with suppress(FileNotFoundError):
            found = self.call("ls", folder, detail=False)
            return [str(path).rstrip("/").rpartition("/")[2] for path in found]
        return []

    @contextmanager
    def new_file(self, name: str) -> Iterator[Path]:
        """Give the path of a temporary file, which gets its name if the block ends well."""
        place = f"{self._root}/{name}"
        if isinstance(self._files, LocalFileSystem):
            self._files.makedirs(os.path.dirname(place), exist_ok=True)
            with atomic_file(Path(place)) as temporary:
                yield temporary
            return
        with tempfile.TemporaryDirectory() as scratch:
            yield (path := Path(scratch) / "content")
            with explained(f"{self.place}/{name}"):
                self._files.put_file(str(path), place)

    def start(self) -> None:
        """Start or continue a job. A job without a finished part may be replaced by another one.

        Raises:
            UserError: The folder has parts of another job, or other files.
        """
        names, record = self.names(), self.job.record()
        if RECORD_NAME in names:
            if self.finished():
                self._compare(record)
        elif others := [name for name in names if name != LOCK_NAME]:
            raise UserError(
                f"{self.place} contains other files ({min(others)}); give an empty folder."
            )
        with self.new_file(RECORD_NAME) as file:
            file.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        self._tidy()

    def _compare(self, wanted: dict[str, Any]) -> None:
        """Refuse another job; the message names the first difference."""
        try:
            parsed = json.loads(self.call("cat_file", RECORD_NAME))
        except ValueError:
            parsed = None
        found = parsed if isinstance(parsed, dict) else {}
        section = next((name for name in DIFFERENCES if found.get(name) != wanted[name]), None)
        if section is None:
            return
        words, old, new = DIFFERENCES[section], found.get(section), wanted[section]
        if isinstance(old, dict):
            name = next((name for name in new if old.get(name) != new[name]), "")
            was, now = json.dumps(old.get(name)), json.dumps(new.get(name))
            words = f"{words} ({name}: was {was}, is now {now})"
        raise UserError(
            f"{self.place} was started {words}. Use the same again, choose another output, or "
            "start again with --overwrite."
        )

    def _tidy(self) -> None:
        """Remove temporary files that killed writers left; in a store they leave none."""
        if isinstance(self._files, LocalFileSystem):
            for left in Path(self._root).rglob(f".*{TEMPORARY_SUFFIX}"):
                left.unlink()

    def clear(self) -> None:
        """Remove the parts of a job; without a record, remove nothing. The record stays."""
        names = self.names()
        if RECORD_NAME not in names:
            return
        self._tidy()
        errors = (f"{ERRORS_NAME}/{name}" for name in self.names(ERRORS_NAME))
        for name in [*filter(PART_NAME.fullmatch, names), *errors]:
            self._remove(name)

    def _remove(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self.call("rm_file", name)

    def finished(self) -> dict[int, str]:
        """Names of the finished parts by their numbers, in order."""
        matches = filter(None, map(PART_NAME.fullmatch, self.names()))
        return dict(sorted((int(match[1]), match[0]) for match in matches))

    def errors(self) -> bytes:
        """The skipped images of all finished parts, a line each."""
        names = sorted({_errors_name(number) for number in self.finished()})
        written = {f"{ERRORS_NAME}/{name}" for name in self.names(ERRORS_NAME)}
        return b"".join(self.call("cat_file", name) for name in names if name in written)

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
            self._remove(_errors_name(number))
            if bad:
                with self.new_file(_errors_name(number)) as errors:
                    errors.write_text("".join(f"{json.dumps(one)}\n" for one in bad), "utf-8")
        return len(bad)


def _errors_name(number: int) -> str:
    return f"{ERRORS_NAME}/part-{number:05}.jsonl"


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


def run_here(task: Task, inputs: Inputs, options: ModelOptions, **output: Any) -> int:
    """Run or continue a job by the model here or on a server, as `run_job`."""
    with opened_engine(options) as engine:
        found = engine.find_model(options.served_name)
        known = {
            "name": found.name,
            "fingerprint": found.package_digest,
            "embed_dim": found.embed_dim,
        }
        job = Job(inputs=inputs, task=task, model=known)
        return run_job(job, partial(compute_here, engine), **output)


def run_job(job: Job, compute: Compute, *, output: str, is_file: bool, overwrite: bool) -> int:
    """Write or complete the output of a job, and say what it has; returns the exit status.

    Args:
        job: What is computed.
        compute: Computes missing parts.
        output: A folder, also the URL of one; or a file.
        is_file: Whether the parts are joined to one file.
        overwrite: Start again.

    Raises:
        UserError: The output is there, and is not known to be of this job; or another job has
            written a part of it.
    """
    file = Path(output) if is_file else None
    place = output if file is None else f"{file}.parts"
    if file is not None:
        if overwrite:
            file.unlink(missing_ok=True)
        if file.exists():
            if job.task.stored_record(file) == job.record():
                return _finished_before(output, errors_file(file))
            raise UserError(f"{file} exists; choose another output, or replace it by --overwrite.")
    with locked_folder(place, job) as folder:
        if overwrite:
            folder.clear()
        folder.start()
        finished, parts = folder.finished(), job.inputs.parts
        missing = [part for part in parts if part.number not in finished]
        if missing:
            counts = {part.number: part.num_images for part in parts}
            unit = "shard" if None in counts.values() else "image"
            total = sum(number or 1 for number in counts.values())
            left = sum(counts[part.number] or 1 for part in missing)
            with shown_progress(unit, total, total - left) as advance:
                compute(missing, folder, advance)
        skipped, listed = folder.errors(), f"{folder.place}/{ERRORS_NAME}"
        if file is not None:
            listed = str(errors_file(file))
            errors_file(file).unlink(missing_ok=True)
            if skipped:
                errors_file(file).write_bytes(skipped)
        print(f"{output}: {job.task.join(folder, file)}")
    if file is not None:
        shutil.rmtree(place, ignore_errors=True)
    if skipped:
        print(f"{listed}: {len(skipped.splitlines())} images were skipped", file=sys.stderr)
    return DONE_WITH_SKIPPED_IMAGES if skipped else DONE


def _finished_before(output: str, errors: Path) -> int:
    """Say that the output is complete; returns the exit status."""
    print(f"{output} is finished; --overwrite computes it again.")
    return DONE_WITH_SKIPPED_IMAGES if errors.exists() else DONE
