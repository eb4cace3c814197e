"""The folder that a job fills part by part; each part appears whole or not at all.

_tipserve.json            what is computed of what; another job is refused
part-00000.parquet ...    rows; a part that is there is done
_errors/part-00000.jsonl  its bad items, where there are any
"""

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from service.bulk.embedding import BadItem
from service.bulk.job import JobError, compare_records
from service.bulk.rows import Row, to_table

RECORD_NAME: Final = "_tipserve.json"
LOCK_NAME: Final = "_lock"
ERRORS_NAME: Final = "_errors"
PART_NAME: Final = re.compile(r"part-(\d+)\.parquet")
TEMPORARY: Final = ".tmp"
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
        _write_whole(file, json.dumps(record, indent=2) + "\n")
        self.errors_folder.mkdir(exist_ok=True)
        for left in [*self.path.glob(f".*{TEMPORARY}"), *self.errors_folder.glob(f".*{TEMPORARY}")]:
            left.unlink()

    def clear(self) -> None:
        """Remove what a job wrote here; where none did, nothing."""
        if not (self.path / RECORD_NAME).exists():
            return
        shutil.rmtree(self.errors_folder, ignore_errors=True)
        for name in [*self.path.glob("part-*.parquet"), *self.path.glob(f".*{TEMPORARY}")]:
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
        temporary = file.with_name(f".{file.name}.{os.getpid()}{TEMPORARY}")
        bad: list[BadItem] = []
        num_rows = 0
        try:
            with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
                for rows in _groups(outcomes, bad):
                    writer.write_table(to_table(rows, schema))
                    num_rows += len(rows)
            _sync(temporary)
            # Complaints first: rows say that the part is done.
            errors = self.errors_file(number)
            if bad:
                _write_whole(errors, "".join(f"{json.dumps(asdict(item))}\n" for item in bad))
            else:
                errors.unlink(missing_ok=True)
            temporary.replace(file)
        finally:
            temporary.unlink(missing_ok=True)
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
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / LOCK_NAME).open("a", encoding="utf-8")
    except OSError as error:
        raise JobError(f"{path} cannot be written to: {error.strerror}.") from error
    with lock:
        _lock(lock, path)
        yield OutputFolder(path)


def _lock(file: IO[str], path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise JobError(f"Another process writes to {path}; wait for it, or end it.") from error
    except OSError:
        # A file system without locks: whoever starts two jobs on one folder there is not stopped.
        return


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


def _write_whole(file: Path, text: str) -> None:
    temporary = file.with_name(f".{file.name}.{os.getpid()}{TEMPORARY}")
    temporary.write_text(text, encoding="utf-8")
    _sync(temporary)
    temporary.replace(file)


def _sync(file: Path) -> None:
    """A name must not outlive its bytes where the machine fails."""
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
