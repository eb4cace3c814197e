"""What a bulk job writes: its record, part files and the single file that joins them."""

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

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
from service.bulk.embedding import BadItem, Dtype, Row, to_table
from service.bulk.inputs import Columns, Inputs
from service.engines.engine import ModelSummary, UserError
from service.messages import EmbedImagesRequest

# What a job computes, and what it may not change between one start and the next.

RECORD_VERSION: Final = 1


class JobError(UserError):
    """The job cannot go on as it was asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOptions:
    """What is computed of every image, and how it is written.

    Attributes:
        request: Without images.
        dtype: Of the numbers.
        columns: Of Parquet files that are read.
        part_items: Images of one part.
    """

    request: EmbedImagesRequest
    dtype: Dtype
    columns: Columns
    part_items: int

    def told(self) -> dict[str, Any]:
        """As plain values."""
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
    """Inputs, options and the model; all that its rows depend on."""

    inputs: Inputs
    options: JobOptions
    model: ModelSummary

    def record(self) -> dict[str, Any]:
        """What stands beside the output, to be compared at the next start."""
        return {
            "version": RECORD_VERSION,
            "options": self.options.told(),
            "model": {
                "name": self.model.name,
                "fingerprint": self.model.fingerprint,
                "embed_dim": self.model.embed_dim,
            },
            "inputs": {"digest": self.inputs.digest, "num_parts": len(self.inputs.parts)},
        }


def check_outputs(options: JobOptions, model: ModelSummary) -> None:
    """Refuse, before anything is read, what the model does not have.

    Raises:
        JobError: It names what there is.
    """
    missing = [name for name in options.request.outputs if name not in model.outputs]
    if missing:
        raise JobError(
            f"{model.name} has no output {missing[0]!r}; it has {', '.join(model.outputs)}."
        )


def compare_records(found: object, wanted: dict[str, Any], place: str) -> None:
    """Refuse to mix rows of two jobs.

    Raises:
        JobError: It names the first difference.
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
                f"{place} was begun {words} ({_difference(old, new)}); repeat those, name another "
                "output, or begin anew by --overwrite."
            )
    raise JobError(f"{place} was begun by another version; begin anew by --overwrite.")


def _difference(old: object, new: dict[str, Any]) -> str:
    before = old if isinstance(old, dict) else {}
    name = next(name for name in new if before.get(name) != new[name])
    return f"{name}: {json.dumps(before.get(name))} then, {json.dumps(new[name])} now"


# The folder that a job fills part by part; each part appears whole or not at all.
#
# _tipserve.json            what is computed of what; another job is refused
# part-00000.parquet ...    rows; a part that is there is done
# _errors/part-00000.jsonl  its bad items, where there are any

RECORD_NAME: Final = "_tipserve.json"
LOCK_NAME: Final = "_lock"
ERRORS_NAME: Final = "_errors"
PART_NAME: Final = re.compile(r"part-(\d+)\.parquet")
# Of the numbers that wait to be written; a part of patches may have gigabytes.
GROUP_BYTES: Final = 32 * 1024 * 1024


class OutputFolder:
    """Where parts are written. Use it in one process at a time, by `locked_folder`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.errors_folder = path / ERRORS_NAME

    def begin(self, record: dict[str, Any]) -> None:
        """Begin a job, or go on with it; a job that wrote no part yet may be another one's start.

        Raises:
            JobError: Another job was begun here, or the folder holds something else.
        """
        file = self.path / RECORD_NAME
        if file.exists():
            if self.done():
                compare_records(_read_record(file), record, str(self.path))
        else:
            others = [p.name for p in self.path.iterdir() if p.name != LOCK_NAME]
            if others:
                raise JobError(
                    f"{self.path} holds something else ({min(others)}); name an empty folder."
                )
        atomic_write(file, json.dumps(record, indent=2) + "\n")
        self.errors_folder.mkdir(exist_ok=True)
        for folder in (self.path, self.errors_folder):
            for left in folder.glob(f".*{TEMPORARY_SUFFIX}"):
                left.unlink()

    def clear(self) -> None:
        """Remove what a job wrote here; where none did, nothing."""
        if not (self.path / RECORD_NAME).exists():
            return
        shutil.rmtree(self.errors_folder, ignore_errors=True)
        for name in [*self.path.glob("part-*.parquet"), *self.path.glob(f".*{TEMPORARY_SUFFIX}")]:
            name.unlink()
        (self.path / RECORD_NAME).unlink()

    def done(self) -> set[int]:
        """Numbers of the parts that are there."""
        matches = (PART_NAME.fullmatch(name) for name in os.listdir(self.path))
        return {int(match[1]) for match in matches if match}

    def part_file(self, number: int) -> Path:
        """Where a part's rows are."""
        return self.path / f"part-{number:05}.parquet"

    def errors_file(self, number: int) -> Path:
        """Where a part's bad items are, if it has any."""
        return self.errors_folder / f"part-{number:05}.jsonl"

    def write_part(
        self, number: int, outcomes: Iterable[Row | BadItem], schema: pa.Schema
    ) -> tuple[int, int]:
        """Write a part; it appears once all of it is written.

        Returns:
            Rows and bad items.
        """
        file = self.part_file(number)
        bad: list[BadItem] = []
        num_rows = 0
        with atomic_file(file) as temporary:
            with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
                for rows in _groups(outcomes, bad):
                    writer.write_table(to_table(rows, schema))
                    num_rows += len(rows)
            # Complaints first: rows say that the part is done.
            errors = self.errors_file(number)
            if bad:
                atomic_write(errors, "".join(f"{json.dumps(asdict(item))}\n" for item in bad))
            else:
                errors.unlink(missing_ok=True)
        return num_rows, len(bad)

    def totals(self) -> tuple[int, int]:
        """Rows and bad items of all parts that are there."""
        numbers = self.done()
        rows = sum(int(pq.read_metadata(self.part_file(n)).num_rows) for n in numbers)
        files = [file for file in map(self.errors_file, numbers) if file.exists()]
        return rows, sum(len(file.read_bytes().splitlines()) for file in files)


@contextmanager
def locked_folder(path: Path) -> Iterator[OutputFolder]:
    """The folder, made where it is not there, while no other process writes to it.

    Raises:
        JobError: One does, or the folder cannot be made.
    """
    with ExitStack() as stack:
        try:
            path.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(path / LOCK_NAME, wait=False))
        except LocksUnsupported:
            # Two jobs that write to one folder are not detected on such a file system.
            pass
        except LockHeld as error:
            raise JobError(f"Another process writes to {path}; wait for it, or end it.") from error
        except OSError as error:
            raise JobError(f"{path} cannot be written to: {error.strerror}.") from error
        yield OutputFolder(path)


def _groups(outcomes: Iterable[Row | BadItem], bad: list[BadItem]) -> Iterator[list[Row]]:
    """Rows to be written at once; what is no row is put aside."""
    rows: list[Row] = []
    num_bytes = 0
    for outcome in outcomes:
        if isinstance(outcome, BadItem):
            bad.append(outcome)
            continue
        rows.append(outcome)
        num_bytes += sum(array.nbytes for array in outcome.embedding.values())
        if num_bytes >= GROUP_BYTES:
            yield rows
            rows, num_bytes = [], 0
    if rows:
        yield rows


def _read_record(file: Path) -> object:
    try:
        return json.loads(file.read_bytes())
    except ValueError:
        return None


# One Parquet file from a job's parts, for outputs that are named as a file.

METADATA_KEY: Final = b"tipserve"


def parts_folder(file: Path) -> Path:
    """Where the parts lie until the file is whole."""
    return file.with_name(f"{file.name}.parts")


def errors_file(file: Path) -> Path:
    """Where the bad items are, if there are any."""
    return file.with_name(f"{file.stem}.errors.jsonl")


def is_finished(file: Path, record: dict[str, Any]) -> bool:
    """Whether the file is there already, from the same job.

    Raises:
        JobError: It is something else.
    """
    if not file.exists():
        return False
    try:
        metadata = pq.read_schema(file).metadata or {}
        found = json.loads(metadata[METADATA_KEY])
    except (OSError, ValueError, KeyError) as error:
        raise JobError(f"{file} is there and no output of this command; name another.") from error
    compare_records(found, record, str(file))
    return True


def join_parts(folder: OutputFolder, file: Path, schema: pa.Schema) -> None:
    """Write all parts into one file, which appears whole; the parts go."""
    numbers = sorted(folder.done())
    errors = b"".join(
        part.read_bytes() for part in map(folder.errors_file, numbers) if part.exists()
    )
    with atomic_file(file) as temporary:
        with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            for number in numbers:
                with pq.ParquetFile(folder.part_file(number)) as part:
                    for index in range(part.num_row_groups):
                        writer.write_table(part.read_row_group(index))
        if errors:
            errors_file(file).write_bytes(errors)
        else:
            errors_file(file).unlink(missing_ok=True)
    shutil.rmtree(folder.path, ignore_errors=True)


def clear_file(file: Path) -> None:
    """Remove an output and its bad items."""
    file.unlink(missing_ok=True)
    errors_file(file).unlink(missing_ok=True)


def count_rows(file: Path) -> tuple[int, int]:
    """Rows and bad items of a finished output."""
    bad = errors_file(file)
    num_bad = len(bad.read_bytes().splitlines()) if bad.exists() else 0
    return int(pq.read_metadata(file).num_rows), num_bad
