"""Keeps a shard's outcomes on disk as they come, so that a killed job loses none that it has.

A line of JSON holds the outcomes that were made together. A line that was cut off by a kill is
dropped when the journal is opened, and its samples are captioned again.
"""

import fcntl
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from training.captioning.outcome import Outcome


class JournalBusy(Exception):
    """Another process is captioning this shard."""


def _read(lines: Iterable[bytes]) -> tuple[dict[str, Outcome], int]:
    """Read outcomes by key, and how many bytes hold whole lines."""
    outcomes: dict[str, Outcome] = {}
    good_bytes = 0
    for line in lines:
        if not line.endswith(b"\n"):
            break
        try:
            documents = json.loads(line)
        except ValueError as error:
            raise ValueError(f"a journal is damaged; delete this line of it: {line!r}") from error
        outcomes.update({(o := Outcome.from_json(document)).key: o for document in documents})
        good_bytes += len(line)
    return outcomes, good_bytes


def settled(outcomes: Mapping[str, Outcome]) -> dict[str, Outcome]:
    """Keep the outcomes that stay: captions, and failures that another try cannot mend."""
    return {
        key: outcome
        for key, outcome in outcomes.items()
        if outcome.failure is None or not outcome.failure.is_transient
    }


def read_journal(path: Path) -> dict[str, Outcome]:
    """Read a journal's outcomes without opening it for writing; {} where there is none."""
    if not path.exists():
        return {}
    with path.open("rb") as file:
        return _read(file)[0]


class Journal:
    """The outcomes of one unfinished shard. While it is open, no other process can open it.

    Processes on one machine, and on most network file systems, may so share a folder of shards.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.outcomes: dict[str, Outcome] = {}
        self._file = path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._file.seek(0)
            self.outcomes, good_bytes = _read(self._file)
            self._file.truncate(good_bytes)
        except BlockingIOError as error:
            self._file.close()
            raise JournalBusy(str(path)) from error
        except BaseException:
            self._file.close()
            raise

    def append(self, outcomes: Sequence[Outcome]) -> None:
        """Add outcomes that belong together: after a kill all of them are there, or none."""
        line = json.dumps([outcome.to_json() for outcome in outcomes], ensure_ascii=False)
        self._file.write(line.encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.outcomes.update({outcome.key: outcome for outcome in outcomes})

    def delete(self) -> None:
        """Remove the journal: its shard is finished."""
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()
