"""One Parquet file from a job's parts, for outputs that are named as a file."""

import json
import os
import shutil
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from service.bulk.job import JobError, compare_records
from service.bulk.output import TEMPORARY, OutputFolder

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
    temporary = file.with_name(f".{file.name}.{os.getpid()}{TEMPORARY}")
    errors = b"".join(
        part.read_bytes() for part in map(folder.errors_file, numbers) if part.exists()
    )
    try:
        with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            for number in numbers:
                with pq.ParquetFile(folder.part_file(number)) as part:
                    for index in range(part.num_row_groups):
                        writer.write_table(part.read_row_group(index))
        if errors:
            errors_file(file).write_bytes(errors)
        else:
            errors_file(file).unlink(missing_ok=True)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
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
