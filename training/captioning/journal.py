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
    """The whole job cannot go on; the message says what to change before starting it again.

    What was captioned until then is kept, and the same command goes on from there.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens that a service charged for; zero for a model that runs here."""

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
        message: What was said, without any secret.
        is_transient: Another try may well succeed, so a job that is started again makes one.
    """

    kind: str
    message: str
    is_transient: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One sample's caption, or its failure; never both, never neither.

    Attributes:
        key: The sample's name in its shard.
        caption: The caption, None where it failed.
        failure: Why it failed, None where it did not.
        usage: Tokens paid for, also where nothing usable came of them.
    """

    key: str
    caption: str | None = None
    failure: Failure | None = None
    usage: Usage = Usage()

    def __post_init__(self) -> None:
        """Check that it is one of the two."""
        if (self.caption is None) == (self.failure is None):
            raise ValueError(f"{self.key}: an outcome is either a caption or a failure")

    def to_json(self) -> dict[str, Any]:
        """Return the outcome as JSON's types."""
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
    """Sum what some outcomes cost."""
    return sum((outcome.usage for outcome in outcomes), Usage())


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What became of a shard's samples, or of several shards'.

    Attributes:
        captioned: Samples that gained a caption.
        already: Samples that had one of this source before, which were left alone.
        failures: The others: key, kind and message of each.
        usage: Tokens paid for.
    """

    captioned: int = 0
    already: int = 0
    failures: tuple[Mapping[str, str], ...] = ()
    usage: Usage = field(default_factory=Usage)

    def __add__(self, other: "Report") -> "Report":
        return Report(
            captioned=self.captioned + other.captioned,
            already=self.already + other.already,
            failures=self.failures + other.failures,
            usage=self.usage + other.usage,
        )


def make_report(outcomes: Iterable[Outcome], *, already: int = 0) -> Report:
    """Sum up a shard's outcomes."""
    outcomes = list(outcomes)
    return Report(
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
    """Write a JSON file whole or not at all."""
    atomic_write(path, json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def write_report(path: Path, report: Report) -> None:
    """Write a report whole or not at all."""
    write_json(path, asdict(report))


def read_report(path: Path) -> Report:
    """Read what `write_report` wrote."""
    document = json.loads(path.read_text(encoding="utf-8"))
    return Report(
        captioned=document["captioned"],
        already=document["already"],
        failures=tuple(document["failures"]),
        usage=Usage(**document["usage"]),
    )


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
            if not try_lock(self._file):
                raise JournalBusy(str(path))
            self._file.seek(0)
            self.outcomes, good_bytes = _read(self._file)
            self._file.truncate(good_bytes)
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


def shard_paths(shards: Path) -> list[Path]:
    """List the shards of a folder in order, or the one shard that was named.

    Raises:
        FileNotFoundError: There is none.
    """
    found = [shards] if shards.is_file() else sorted(shards.glob("*.tar"))
    if not found:
        raise FileNotFoundError(f"no shards in {shards}: name a folder of .tar files, or one file")
    return found


def read_shard(path: Path) -> Iterator[tuple[str, Sample | BadSample]]:
    """Read a shard's samples by key, one after another in its order.

    Yields:
        Each key with its sample, or with what is wrong with it.

    Raises:
        ValueError: The file is damaged, or a key comes twice.
    """
    seen: set[str] = set()
    try:
        for key, entries in groupby(_entries(path), key=lambda entry: split_name(entry[0])[0]):
            if key in seen:
                raise ValueError(f"{path}: the key {key} comes twice; keys name samples")
            seen.add(key)
            try:
                yield key, sample_from_members(dict(entries))
            except BadSample as error:
                yield key, error
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{path} is no tar file, or a damaged one: {error}") from error


def lacking(path: Path, source: str, settled: Container[str]) -> Iterator[Sample]:
    """Read the samples that have no caption of a source, but for those whose key is settled."""
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
class Merge:
    """One pass over a shard; the counts are right once `samples` has been read to its end.

    Attributes:
        shard: The shard without the captions.
        outcomes: What came of its samples, by key.
        source: What the captions are called.
        already: Samples that had a caption of this source.
        unusable: Failures of entries that are no samples; the new shard leaves them out.
    """

    shard: Path
    outcomes: Mapping[str, Outcome]
    source: str
    already: int = 0
    unusable: list[Outcome] = field(default_factory=list)

    def samples(self) -> Iterator[Sample]:
        """Read the shard's samples, each with its caption where it has one.

        Raises:
            ValueError: The outcomes are not this shard's.
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
            f"{self.shard} is not what it was when its captioning began: {key} came or went; "
            "delete its journal in the output folder to begin it again"
        )


_SETTINGS = "captions.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputFolder:
    """Names of files, for a shard of the input by its path."""

    path: Path

    def shard(self, source: Path) -> Path:
        """The shard with captions."""
        return self.path / source.name

    def report(self, source: Path) -> Path:
        """The side file, which is written last."""
        return self.path / f"{source.name}.report.json"

    def is_finished(self, source: Path) -> bool:
        """Whether nothing is left to do for a shard."""
        return self.report(source).exists()

    def journal(self, source: Path) -> Path:
        """The unfinished shard's outcomes."""
        return self.path / f"{source.name}.journal"

    def claim(self, settings: Mapping[str, Any]) -> None:
        """Write down what the captions depend on, or compare it with what was written down.

        Raises:
            ValueError: The folder was begun with other settings.
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
                f"{self.path} was begun with other settings ({'; '.join(changed)}); go on with "
                "those, or name another folder"
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
