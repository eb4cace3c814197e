"""Files of a captioning job: input shards, journals of outcomes, finished shards and reports.

A journal keeps the outcomes of an unfinished shard, so that a killed job loses none. Each line of
JSON holds the outcomes of one batch. A line that a kill cut off is dropped when the journal is
opened, and its samples are captioned again. Shards are read from their beginning, without an index.
"""

import json
import os
import tarfile
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from model.files import atomic_write, try_lock
from training.data.shards.sample import BadSample, Sample, sample_from_members, split_name


class JobStopped(ValueError):
    """The whole job cannot continue; the message says what to change before running it again.

    Finished captions are kept, and the same command resumes the job.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens that a service charged for; zero for a local model."""

    input_tokens: int = 0
    output_tokens: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a sample has no caption.

    Attributes:
        kind: One word to count by: "image", "blocked", "empty", "refused", "unavailable".
        message: The reason, without secrets.
        is_transient: Whether the next run of the job tries again.
    """

    kind: str
    message: str
    is_transient: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Either the caption of a sample or its failure.

    Attributes:
        key: The sample's name in its shard.
        caption: The caption; None after a failure.
        failure: The failure; None with a caption.
        usage: Tokens paid for, also after a failure.
    """

    key: str
    caption: str | None = None
    failure: Failure | None = None
    usage: Usage = Usage()

    def __post_init__(self) -> None:
        """Check that exactly one of the two is set."""
        if (self.caption is None) == (self.failure is None):
            raise ValueError(f"{self.key}: an outcome is either a caption or a failure")

    def to_json(self) -> dict[str, Any]:
        """The outcome as JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Outcome":
        """Read what `to_json` wrote."""
        failure = document["failure"]
        return cls(
            key=document["key"],
            caption=document["caption"],
            failure=None if failure is None else Failure(**failure),
            usage=Usage(**document["usage"]),
        )


def total_usage(outcomes: Iterable[Outcome]) -> Usage:
    """Total tokens of some outcomes."""
    return sum((outcome.usage for outcome in outcomes), Usage())


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardReport:
    """Results of one shard or of several.

    Attributes:
        captioned: Samples with a new caption.
        already: Samples that already had a caption of this source, left unchanged.
        failures: Key, kind and message of each other sample.
        usage: Tokens paid for.
    """

    captioned: int = 0
    already: int = 0
    failures: tuple[Mapping[str, str], ...] = ()
    usage: Usage = field(default_factory=Usage)

    def __add__(self, other: "ShardReport") -> "ShardReport":
        return ShardReport(
            captioned=self.captioned + other.captioned,
            already=self.already + other.already,
            failures=self.failures + other.failures,
            usage=self.usage + other.usage,
        )


def make_report(outcomes: Iterable[Outcome], *, already: int = 0) -> ShardReport:
    """Summarise a shard's outcomes."""
    outcomes = list(outcomes)
    return ShardReport(
        captioned=sum(outcome.caption is not None for outcome in outcomes),
        already=already,
        failures=tuple(
            {"key": outcome.key, "kind": failure.kind, "message": failure.message}
            for outcome in outcomes
            if (failure := outcome.failure) is not None
        ),
        usage=total_usage(outcomes),
    )


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a JSON file atomically."""
    atomic_write(path, json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def read_report(path: Path) -> ShardReport:
    """Read a report from JSON."""
    document = json.loads(path.read_text(encoding="utf-8"))
    return ShardReport(
        captioned=document["captioned"],
        already=document["already"],
        failures=tuple(document["failures"]),
        usage=Usage(**document["usage"]),
    )


class JournalBusy(Exception):
    """Another process is captioning this shard."""


def _read(lines: Iterable[bytes]) -> tuple[dict[str, Outcome], int]:
    """Read outcomes by key, and the number of bytes in complete lines."""
    outcomes: dict[str, Outcome] = {}
    good_bytes = 0
    for line in lines:
        if not line.endswith(b"\n"):
            break
        try:
            documents = json.loads(line)
        except ValueError as error:
            raise ValueError(f"the journal is damaged; delete this line: {line!r}") from error
        outcomes.update({(o := Outcome.from_json(document)).key: o for document in documents})
        good_bytes += len(line)
    return outcomes, good_bytes


def settled(outcomes: Mapping[str, Outcome]) -> dict[str, Outcome]:
    """Outcomes that are final: captions, and failures that are not transient."""
    return {
        key: outcome
        for key, outcome in outcomes.items()
        if outcome.failure is None or not outcome.failure.is_transient
    }


def read_journal(path: Path) -> dict[str, Outcome]:
    """Read a journal's outcomes without a lock; {} if there is none."""
    if not path.exists():
        return {}
    with path.open("rb") as file:
        return _read(file)[0]


class Journal:
    """The outcomes of one unfinished shard. Only one process can open it at a time.

    So several processes can share a folder of shards, on one machine and on most network file
    systems.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.outcomes: dict[str, Outcome] = {}
        self._file = path.open("a+b")
        try:
            if not try_lock(self._file):
                raise JournalBusy(str(path))
            self._file.seek(0)
            self.outcomes, good_bytes = _read(self._file)
            self._file.truncate(good_bytes)
        except BaseException:
            self._file.close()
            raise

    def append(self, outcomes: Sequence[Outcome]) -> None:
        """Add the outcomes of a batch: after a kill all of them are there, or none."""
        line = json.dumps([outcome.to_json() for outcome in outcomes], ensure_ascii=False)
        self._file.write(line.encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.outcomes.update({outcome.key: outcome for outcome in outcomes})

    def delete(self) -> None:
        """Remove the journal of a finished shard."""
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


def shard_paths(shards: Path) -> list[Path]:
    """The shards of a folder in order, or the one shard that was named.

    Raises:
        FileNotFoundError: There are none.
    """
    found = [shards] if shards.is_file() else sorted(shards.glob("*.tar"))
    if not found:
        raise FileNotFoundError(f"no shards in {shards}: name a folder of .tar files, or one file")
    return found


def read_shard(path: Path) -> Iterator[tuple[str, Sample | BadSample]]:
    """Read a shard's samples in order.

    Yields:
        Each key with its sample, or with the reason why it is none.

    Raises:
        ValueError: The file is damaged, or a key is repeated.
    """
    keys: set[str] = set()
    try:
        for key, entries in groupby(_entries(path), key=lambda entry: split_name(entry[0])[0]):
            if key in keys:
                raise ValueError(f"{path}: the key {key} is repeated; keys must be unique")
            keys.add(key)
            try:
                yield key, sample_from_members(dict(entries))
            except BadSample as error:
                yield key, error
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{path} is not a valid tar file: {error}") from error


def uncaptioned(path: Path, source: str, settled: Container[str]) -> Iterator[Sample]:
    """Samples without a caption of a source, except those with a settled key."""
    for key, sample in read_shard(path):
        if isinstance(sample, BadSample) or key in settled:
            continue
        if source not in sample.captions:
            yield sample


def _entries(path: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(path, "r:") as tar:
        for entry in tar:
            content = tar.extractfile(entry) if entry.isfile() else None
            if content is not None:
                yield entry.name, content.read()


@dataclass(slots=True, kw_only=True)
class CaptionMerge:
    """Adds captions to a shard's samples. The counts are valid once `samples` is exhausted.

    Attributes:
        shard: The shard without the captions.
        outcomes: Outcomes of its samples, by key.
        source: Caption source of the new captions.
        already: Samples that already had a caption of this source.
        unusable: Failures of entries that are not samples; the new shard leaves them out.
    """

    shard: Path
    outcomes: Mapping[str, Outcome]
    source: str
    already: int = 0
    unusable: list[Outcome] = field(default_factory=list)

    def samples(self) -> Iterator[Sample]:
        """The shard's samples, with their new captions.

        Raises:
            ValueError: The outcomes belong to another shard.
        """
        rest = dict(self.outcomes)
        for key, sample in read_shard(self.shard):
            outcome = rest.pop(key, None)
            if isinstance(sample, BadSample):
                failure = Failure(kind="sample", message=str(sample))
                self.unusable.append(Outcome(key=key, failure=failure))
            elif outcome is not None and outcome.caption is not None:
                captions = {**sample.captions, self.source: outcome.caption}
                yield replace(sample, captions=captions)
            elif outcome is not None or self.source in sample.captions:
                self.already += outcome is None
                yield sample
            else:
                raise ValueError(self._changed(key))
        if rest:
            raise ValueError(self._changed(next(iter(rest))))

    def _changed(self, key: str) -> str:
        return (
            f"{self.shard} has changed since its captioning started: {key} was added or removed; "
            "delete its journal in the output folder to start again"
        )


_SETTINGS = "captions.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputFolder:
    """Paths of a job's files, for an input shard by its path."""

    path: Path

    def shard(self, source: Path) -> Path:
        """The shard with captions."""
        return self.path / source.name

    def report(self, source: Path) -> Path:
        """The report, which is written last."""
        return self.path / f"{source.name}.report.json"

    def is_finished(self, source: Path) -> bool:
        """Whether a shard is finished."""
        return self.report(source).exists()

    def journal(self, source: Path) -> Path:
        """The journal of an unfinished shard."""
        return self.path / f"{source.name}.journal"

    def claim(self, settings: Mapping[str, Any]) -> None:
        """Record the settings that the captions depend on, or compare with the recorded ones.

        Raises:
            ValueError: The folder has other settings.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        file = self.path / _SETTINGS
        if not file.exists():
            write_json(file, settings)
        earlier = json.loads(file.read_text(encoding="utf-8"))
        now = json.loads(json.dumps(settings))
        changed = [f"{name}: {a!r}, now {b!r}" for name, a, b in _changes(earlier, now)]
        if changed:
            raise ValueError(
                f"{self.path} was started with other settings ({'; '.join(changed)}); use those, "
                "or name another folder"
            )


def _changes(
    earlier: Mapping[str, Any], now: Mapping[str, Any], prefix: str = ""
) -> list[tuple[str, Any, Any]]:
    changes: list[tuple[str, Any, Any]] = []
    for name in sorted({*earlier, *now}):
        a, b = earlier.get(name), now.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            changes += _changes(a, b, f"{prefix}{name}.")
        elif a != b:
            changes.append((f"{prefix}{name}", a, b))
    return changes
