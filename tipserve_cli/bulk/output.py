"""The output of a bulk job: its record, the files of its parts, and the file that joins them.

A job that was stopped continues if inputs, options and model are the same. The output folder, which
may be one of an object store, has

_tipserve.json            the record: what is computed from what
part-00000.parquet ...    rows; a part with a file is finished
_errors/part-00000.jsonl  the skipped images of a part, if there are any
"""

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from model.files import (
    TEMPORARY_SUFFIX,
    LockHeld,
    LocksUnsupported,
    atomic_file,
    atomic_write,
    locked,
)
from model.stores import is_url
from service.messages import EmbedImagesRequest
from tipserve_cli.bulk.embedding import Dtype, Row, SkippedImage, to_table
from tipserve_cli.bulk.inputs import Columns, Inputs
from tipserve_cli.bulk.stores import StoreFolder
from tipserve_cli.engines.engine import ModelSummary, UserError

RECORD_VERSION: Final = 1
METADATA_KEY: Final = b"tipserve"
RECORD_NAME: Final = "_tipserve.json"
LOCK_NAME: Final = "_lock"
ERRORS_NAME: Final = "_errors"
PART_NAME: Final = re.compile(r"part-(\d+)\.parquet")
# Rows are written in groups of this size, because patch embeddings of a part can be gigabytes.
GROUP_BYTES: Final = 32 * 1024 * 1024


class JobError(UserError):
    """The job cannot be done as requested."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOptions:
    """What is computed for every image, and how it is written.

    Attributes:
        request: The request for each image, without the image.
        dtype: Number format in the output.
        columns: Columns of Parquet inputs.
        part_items: Images of a part.
    """

    request: EmbedImagesRequest
    dtype: Dtype
    columns: Columns
    part_items: int

    def as_dict(self) -> dict[str, Any]:
        """The options as JSON values."""
        request = asdict(self.request)
        del request["images"], request["model"]
        return {
            **request,
            "outputs": list(self.request.outputs),
            "dtype": self.dtype,
            "image_column": self.columns.image,
            "key_column": self.columns.key,
            "part_items": self.part_items,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Everything that the rows of the output depend on."""

    inputs: Inputs
    options: JobOptions
    model: ModelSummary

    def record(self) -> dict[str, Any]:
        """The record, which is stored with the output and compared when the job continues."""
        return {
            "version": RECORD_VERSION,
            "options": self.options.as_dict(),
            "model": {
                "name": self.model.name,
                "fingerprint": self.model.fingerprint,
                "embed_dim": self.model.embed_dim,
            },
            "inputs": {"digest": self.inputs.digest, "num_parts": len(self.inputs.parts)},
        }


def check_outputs(options: JobOptions, model: ModelSummary) -> None:
    """Check that the model has all outputs, before any image is read.

    Raises:
        JobError: An output is missing.
    """
    missing = [name for name in options.request.outputs if name not in model.outputs]
    if missing:
        raise JobError(
            f"{model.name} has no output {missing[0]!r}; it has {', '.join(model.outputs)}."
        )


def compare_records(found: object, wanted: dict[str, Any], place: str) -> None:
    """Check that an existing output is of the same job.

    Raises:
        JobError: It is not; the message names the first difference.
    """
    if found == wanted:
        return
    before = found if isinstance(found, dict) else {}
    for section, words in (
        ("options", "with other options"),
        ("model", "by another model"),
        ("inputs", "from other inputs"),
    ):
        old, new = before.get(section), wanted[section]
        if old != new:
            raise JobError(
                f"{place} was started {words} ({_difference(old, new)}). Use the same again, "
                "choose another output, or start again with --overwrite."
            )
    raise JobError(f"{place} was started by another version; start again with --overwrite.")


def _difference(old: object, new: dict[str, Any]) -> str:
    before = old if isinstance(old, dict) else {}
    name = next(name for name in new if before.get(name) != new[name])
    return f"{name}: was {json.dumps(before.get(name))}, is now {json.dumps(new[name])}"


class LocalFolder:
    """The folder of a bulk job in a file system. A file appears whole, by a rename."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def names(self, folder: str = "") -> list[str]:
        """Names in the folder or in a folder of it; none if there is no such folder."""
        path = self._path / folder
        return os.listdir(path) if path.is_dir() else []

    def read(self, name: str) -> bytes:
        """Content of a file."""
        return (self._path / name).read_bytes()

    def write(self, name: str, content: str) -> None:
        """Write a file atomically."""
        (self._path / name).parent.mkdir(exist_ok=True)
        atomic_write(self._path / name, content)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        (self._path / name).unlink(missing_ok=True)

    def new_file(self, name: str) -> AbstractContextManager[Path]:
        """Give the path of a temporary file that is renamed if the block ends without an error."""
        return atomic_file(self._path / name)

    def opened(self, name: str) -> IO[bytes]:
        """Open a file for reading."""
        return (self._path / name).open("rb")

    def tidy(self) -> None:
        """Remove temporary files that killed writers left."""
        for folder in (self._path, self._path / ERRORS_NAME):
            for left in folder.glob(f".*{TEMPORARY_SUFFIX}"):
                left.unlink()


class OutputFolder:
    """The folder with the parts of a job. `locked_folder` reserves it for one process.

    Attributes:
        place: Its path, or its URL in an object store.
    """

    def __init__(self, place: str) -> None:
        self.place = place
        self._files: StoreFolder | LocalFolder
        self._files = StoreFolder(place) if is_url(place) else LocalFolder(Path(place))

    def start(self, record: dict[str, Any]) -> None:
        """Start or continue a job. A job without a finished part may be replaced by another one.

        Raises:
            JobError: The folder has parts of another job, or other files.
        """
        names = self._files.names()
        if RECORD_NAME in names:
            if self.finished_parts():
                compare_records(_parsed(self._files.read(RECORD_NAME)), record, self.place)
        elif others := [name for name in names if name != LOCK_NAME]:
            raise JobError(
                f"{self.place} contains other files ({min(others)}); give an empty folder."
            )
        self._files.write(RECORD_NAME, json.dumps(record, indent=2) + "\n")
        self._files.tidy()

    def clear(self) -> None:
        """Remove the files of a job; without a record, remove nothing."""
        names = self._files.names()
        if RECORD_NAME not in names:
            return
        self._files.tidy()
        for name in filter(PART_NAME.fullmatch, names):
            self._files.remove(name)
        for name in self._files.names(ERRORS_NAME):
            self._files.remove(f"{ERRORS_NAME}/{name}")
        self._files.remove(RECORD_NAME)

    def finished_parts(self) -> set[int]:
        """Numbers of the finished parts."""
        matches = map(PART_NAME.fullmatch, self._files.names())
        return {int(match[1]) for match in matches if match}

    def opened_part(self, number: int) -> AbstractContextManager[IO[bytes]]:
        """Open the rows of a part."""
        return self._files.opened(_part_name(number))

    def errors(self) -> bytes:
        """The skipped images of all finished parts, a line each."""
        finished = {_errors_name(number) for number in self.finished_parts()}
        names = (f"{ERRORS_NAME}/{name}" for name in sorted(self._files.names(ERRORS_NAME)))
        return b"".join(self._files.read(name) for name in names if name in finished)

    def write_part(
        self, number: int, outcomes: Iterable[Row | SkippedImage], schema: pa.Schema
    ) -> tuple[int, int]:
        """Write a part atomically.

        Returns:
            Numbers of rows and skipped images.
        """
        bad: list[SkippedImage] = []
        num_rows = 0
        with self._files.new_file(_part_name(number)) as temporary:
            with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
                for rows in _groups(outcomes, bad):
                    writer.write_table(to_table(rows, schema))
                    num_rows += len(rows)
            # The skipped images first, because the file with the rows marks the part as finished.
            errors = _errors_name(number)
            if bad:
                lines = "".join(f"{json.dumps(asdict(item))}\n" for item in bad)
                self._files.write(errors, lines)
            else:
                self._files.remove(errors)
        return num_rows, len(bad)

    def totals(self) -> tuple[int, int]:
        """Numbers of rows and skipped images in all finished parts."""
        num_rows = 0
        for number in self.finished_parts():
            with self.opened_part(number) as file:
                num_rows += int(pq.read_metadata(file).num_rows)
        return num_rows, len(self.errors().splitlines())


def _part_name(number: int) -> str:
    return f"part-{number:05}.parquet"


def _errors_name(number: int) -> str:
    return f"{ERRORS_NAME}/part-{number:05}.jsonl"


@contextmanager
def locked_folder(place: str | Path) -> Iterator[OutputFolder]:
    """Create the folder if it is missing, and lock it; a folder of a store needs neither.

    Raises:
        JobError: Another process has locked it, or it cannot be created.
        StoreFailed: The URL is of no known store, or its library is missing.
    """
    if is_url(str(place)):
        yield OutputFolder(str(place))
        return
    path = Path(place)
    with ExitStack() as stack:
        try:
            path.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(path / LOCK_NAME, wait=False))
        except LocksUnsupported:
            # Two jobs that write to one folder are not detected on such a file system.
            pass
        except LockHeld as error:
            raise JobError(f"Another process writes to {path}; wait until it ends.") from error
        except OSError as error:
            raise JobError(f"{path} cannot be written to: {error.strerror}.") from error
        yield OutputFolder(str(path))


def _groups(outcomes: Iterable[Row | SkippedImage], bad: list[SkippedImage]) -> Iterator[list[Row]]:
    """Groups of rows; skipped images are appended to `bad`."""
    rows: list[Row] = []
    num_bytes = 0
    for outcome in outcomes:
        if isinstance(outcome, SkippedImage):
            bad.append(outcome)
            continue
        rows.append(outcome)
        num_bytes += sum(array.nbytes for array in outcome.embedding.values())
        if num_bytes >= GROUP_BYTES:
            yield rows
            rows, num_bytes = [], 0
    if rows:
        yield rows


def _parsed(record: bytes) -> object:
    try:
        return json.loads(record)
    except ValueError:
        return None


def parts_folder(file: Path) -> Path:
    """Folder of the parts until they are joined."""
    return file.with_name(f"{file.name}.parts")


def errors_file(file: Path) -> Path:
    """File with the skipped images, if there are any."""
    return file.with_name(f"{file.stem}.errors.jsonl")


def is_finished(file: Path, record: dict[str, Any]) -> bool:
    """Whether the file exists and is of the same job.

    Raises:
        JobError: It exists and is something else.
    """
    if not file.exists():
        return False
    try:
        metadata = pq.read_schema(file).metadata or {}
        found = json.loads(metadata[METADATA_KEY])
    except (OSError, ValueError, KeyError) as error:
        raise JobError(
            f"{file} exists and is not an output of this command; give another name."
        ) from error
    compare_records(found, record, str(file))
    return True


def join_parts(folder: OutputFolder, file: Path, schema: pa.Schema) -> None:
    """Join all parts into one file atomically, and remove them; no folder of a store."""
    errors = folder.errors()
    with atomic_file(file) as temporary:
        with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            for number in sorted(folder.finished_parts()):
                with folder.opened_part(number) as opened, pq.ParquetFile(opened) as part:
                    for index in range(part.num_row_groups):
                        writer.write_table(part.read_row_group(index))
        if errors:
            errors_file(file).write_bytes(errors)
        else:
            errors_file(file).unlink(missing_ok=True)
    shutil.rmtree(folder.place, ignore_errors=True)


def clear_file(file: Path) -> None:
    """Remove an output file and the list of its skipped images."""
    file.unlink(missing_ok=True)
    errors_file(file).unlink(missing_ok=True)


def count_rows(file: Path) -> tuple[int, int]:
    """Numbers of rows and skipped images in a finished output."""
    bad = errors_file(file)
    num_bad = len(bad.read_bytes().splitlines()) if bad.exists() else 0
    return int(pq.read_metadata(file).num_rows), num_bad
