"""Adds a caption to every image of some shards. A stopped job continues.

The output folder holds `captions.json`, the settings that the captions depend on. Each shard has a
JSONL file with a line for each image, its caption or why it has none, and once that is complete the
shard with the captions. A finished shard is not touched again.
"""

import json
import os
import re
import unicodedata
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from training.data.shards.sample import BadSample, Sample
from training.data.shards.store import ShardStore, claim_folder
from training.data.shards.tar_shard import offsets_path, read_rows, write_shard

_SETTINGS = "captions.json"
MAX_CHARACTERS = 1000
"""At which a caption is cut, back to the end of a word. Not published by TIPSv2. Its text tower
reads 64 tokens, about 300 characters of English; three times that limits a model that does not
stop."""
_QUOTES = (('"', '"'), ("\u201c", "\u201d"), ("'", "'"), ("\u2018", "\u2019"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The caption of the sample with a key in its shard, or the reason why it has none."""

    key: str
    caption: str | None = None
    failure: str | None = None


Outcomes = Generator[list[Outcome], None, None]


class Captioner(Protocol):
    """A model or a service that captions images.

    Attributes:
        source: Caption source under which its captions are stored.
        shards_ahead: Shards that are started before the first one is waited for.
    """

    source: str
    shards_ahead: int

    def settings(self) -> Mapping[str, Any]:
        """Everything that the captions depend on, as JSON types and without secrets."""

    def start(self, samples: Iterable[Sample], note: Path) -> Outcomes:
        """Start on some samples; their outcomes come in lists, in any order.

        Args:
            samples: Read as they are needed.
            note: File in which a service keeps where its work is, for a later process.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionJob:
    """Input, output and cleaning of a job.

    Attributes:
        shards: Folder of shards with a manifest.
        output: Folder for the shards with captions.
    """

    shards: Path
    output: Path

    def __post_init__(self) -> None:
        """Check that input and output differ."""
        if self.shards.resolve() == self.output.resolve():
            raise ValueError(f"--output {self.output} holds the input shards; name another folder")

    def run(self, captioner: Captioner, *, report: Callable[[str], None] = print) -> str:
        """Caption all samples that have no caption of this source; returns a summary.

        Raises:
            ValueError: The output folder has other settings, or the captioner stops. What it
                captioned is kept.
            FileNotFoundError: There are no shards, or they are not indexed.
        """
        paths = ShardStore(self.shards).shards
        claim_folder(self.output / _SETTINGS, {"source": captioner.source, **captioner.settings()})
        started: deque[tuple[Path, Outcomes]] = deque()
        for path in paths:
            if not offsets_path(self.output / path.name).exists():
                started.append((path, self._start(path, captioner)))
            while len(started) > captioner.shards_ahead:
                report(self._finish(*started.popleft(), captioner.source))
        while started:
            report(self._finish(*started.popleft(), captioner.source))
        return _summary(outcome for path in paths for outcome in self._outcomes(path).values())

    def _record(self, shard: Path) -> Path:
        return self.output / f"{shard.name}.captions.jsonl"

    def _outcomes(self, shard: Path) -> dict[str, Outcome]:
        """The outcomes so far by key; a line that a kill cut off is dropped."""
        record = self._record(shard)
        if not record.exists():
            return {}
        text = record.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        if whole != text:
            os.truncate(record, len(whole))
        outcomes = [Outcome(**json.loads(line)) for line in whole.splitlines()]
        return {outcome.key: outcome for outcome in outcomes}

    def _start(self, shard: Path, captioner: Captioner) -> Outcomes:
        known = self._outcomes(shard)
        samples = (
            sample
            for key, sample in read_shard(shard)
            if isinstance(sample, Sample)
            and key not in known
            and captioner.source not in sample.captions
        )
        return captioner.start(samples, self.output / f"{shard.name}.note")

    def _finish(self, shard: Path, batches: Outcomes, source: str) -> str:
        """Record each outcome at once, then write the shard; returns a summary."""
        with self._record(shard).open("ab", buffering=0) as file, closing(batches):
            for batch in batches:
                file.write(b"".join(_line(outcome) for outcome in batch))
            outcomes = self._outcomes(shard)
            for key, sample in read_shard(shard):
                if isinstance(sample, BadSample):
                    outcome = Outcome(key=key, failure=str(sample))
                elif source not in sample.captions:
                    outcome = Outcome(key=key, failure="no answer")
                else:
                    continue
                if key not in outcomes:
                    file.write(_line(outcome))
        samples = (
            _captioned(sample, outcomes.get(key), source)
            for key, sample in read_shard(shard)
            if isinstance(sample, Sample)
        )
        write_shard(self.output / shard.name, samples)
        return f"{shard.name}: {_summary(self._outcomes(shard).values())}"


def clean_caption(text: str) -> str:
    """Clean a caption; the result may be empty.

    In this order: compose characters (NFC), remove control and other invisible characters, turn
    white space into single spaces, remove one pair of quotes around the whole, cut to the maximum
    length at the end of a word.
    """
    text = unicodedata.normalize("NFC", text)
    text = "".join(c for c in text if c.isspace() or unicodedata.category(c)[0] != "C")
    text = re.sub(r"\s+", " ", text).strip()
    for left, right in _QUOTES:
        inner = text[1:-1]
        if len(text) > 1 and text[0] == left and text[-1] == right and left not in inner:
            text = inner.strip()
            break
    if len(text) <= MAX_CHARACTERS:
        return text
    cut = text[: MAX_CHARACTERS + 1]
    return cut.rsplit(" ", 1)[0].rstrip() if " " in cut else cut[:MAX_CHARACTERS]


def read_shard(path: Path) -> Iterator[tuple[str, Sample | BadSample]]:
    """Read a shard's samples in order.

    Yields:
        Each key with its sample, or a row with the reason why it is none.

    Raises:
        ValueError: A key is repeated.
    """
    keys: set[str] = set()
    for row, sample in enumerate(read_rows(path)):
        if isinstance(sample, BadSample):
            yield f"row {row}", sample
            continue
        if sample.key in keys:
            raise ValueError(f"{path}: the key {sample.key} is repeated; keys must be unique")
        keys.add(sample.key)
        yield sample.key, sample


def _captioned(sample: Sample, outcome: Outcome | None, source: str) -> Sample:
    if outcome is None or outcome.caption is None:
        return sample
    return replace(sample, captions={**sample.captions, source: outcome.caption})


def _line(outcome: Outcome) -> bytes:
    """A line of the record, with the caption cleaned."""
    caption, failure = outcome.caption, outcome.failure
    if caption is not None:
        caption = clean_caption(caption) or None
        failure = None if caption else "the answer is empty"
    fields = {"key": outcome.key, "caption": caption, "failure": failure}
    return json.dumps(fields, ensure_ascii=False).encode() + b"\n"


def _summary(outcomes: Iterable[Outcome]) -> str:
    failed = [outcome.caption is None for outcome in outcomes]
    return f"{len(failed) - sum(failed):,} captions, {sum(failed):,} failed"
