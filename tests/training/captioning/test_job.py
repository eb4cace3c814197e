"""A captioning job: cleaning, failures, resuming, and the files that it writes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from tests.training.captioning.conftest import make_samples
from training.captioning.job import (
    MAX_CHARACTERS,
    CaptionJob,
    Outcome,
    Outcomes,
    clean_caption,
    read_shard,
)
from training.data.shards.sample import Sample
from training.data.shards.tar_shard import write_shard


class Killed(BaseException):
    """Ends a job in the middle, as a signal would."""


@dataclass
class FakeCaptioner:
    """Captions two samples at a time; raises `Killed` after `dies_after` samples."""

    dies_after: int = 99
    failures: Mapping[str, str] = field(default_factory=dict)
    answer: str = "  {key} in\n{key} "
    forgets: bool = False
    source: str = "paligemma"
    shards_ahead: int = 0
    version: int = 1
    seen: list[str] = field(default_factory=list)

    def settings(self) -> Mapping[str, Any]:
        return {"version": self.version}

    def start(self, samples: Iterable[Sample], note: Path) -> Outcomes:
        remaining = iter(samples)
        while batch := list(islice(remaining, 2)):
            if len(self.seen) >= self.dies_after:
                raise Killed
            self.seen += [sample.key for sample in batch]
            yield [self._one(sample.key) for sample in batch if not self.forgets]

    def _one(self, key: str) -> Outcome:
        failure = self.failures.get(key)
        caption = None if failure else self.answer.format(key=key)
        return Outcome(key=key, caption=caption, failure=failure)


@pytest.fixture
def job(shards: Path, tmp_path: Path) -> CaptionJob:
    return CaptionJob(shards=shards, output=tmp_path / "out")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_it_adds_a_clean_caption_and_changes_nothing_else(job: CaptionJob) -> None:
    assert job.run(FakeCaptioner()) == "8 captions, 0 failed"
    for name in ("a.tar", "b.tar"):
        before, after = (dict(read_shard(folder / name)) for folder in (job.shards, job.output))
        assert list(before) == list(after)
        for key, sample in after.items():
            assert isinstance(sample, Sample)
            assert sample.captions["paligemma"] == f"{key} in {key}"
            rest = {s: c for s, c in sample.captions.items() if s != "paligemma"}
            assert replace(sample, captions=rest) == before[key]


@pytest.mark.parametrize("shards_ahead", [0, 1])
@pytest.mark.parametrize("dies_after", [0, 2, 7])
def test_a_killed_job_ends_like_one_that_was_not(
    job: CaptionJob, tmp_path: Path, dies_after: int, shards_ahead: int
) -> None:
    whole = replace(job, output=tmp_path / "whole")
    failures = {"k001": "the image is broken"}
    whole.run(FakeCaptioner(failures=failures))
    first, second = (
        FakeCaptioner(failures=failures, dies_after=dies, shards_ahead=shards_ahead)
        for dies in (dies_after, 99)
    )
    with pytest.raises(Killed):
        job.run(first)
    if dies_after == 2:
        with (job.output / "a.tar.captions.jsonl").open("ab") as file:
            file.write(b'{"key": "k0')  # cut off by the kill
    for _ in range(2):  # the second run finds nothing to do
        assert job.run(second) == "7 captions, 1 failed"
        assert sorted(first.seen + second.seen) == [f"k{i:03d}" for i in range(8)]
        assert contents(job.output) == contents(whole.output)


def test_other_settings_and_other_folders_are_refused(job: CaptionJob, shards: Path) -> None:
    job.run(FakeCaptioner())
    with pytest.raises(ValueError, match="begun with another version"):
        job.run(FakeCaptioner(version=2))
    with pytest.raises(ValueError, match="another folder"):
        replace(job, output=shards)
    with pytest.raises(FileNotFoundError, match="shards index"):
        replace(job, shards=job.output / "none").run(FakeCaptioner())
    write_shard(shards / "b.tar", make_samples(0, 1) * 2)
    with pytest.raises(ValueError, match=r"k000 is repeated"):
        list(read_shard(shards / "b.tar"))


@pytest.mark.parametrize(
    ("answer", "caption"),
    [
        ("a cat\n\n on a\tmat ", "a cat on a mat"),
        ('"a cat"', "a cat"),
        ("\u201ca cat\u201d", "a cat"),
        ('"a" and "b"', '"a" and "b"'),
        ("the cat's mat", "the cat's mat"),
        ("cafe\u0301", "caf\u00e9"),
        ("a\u200b cat\x00\ufeff", "a cat"),
        ("a\u00a0cat", "a cat"),
        ('""', ""),
        ('"', '"'),
        ("x" * 996 + " two", "x" * 996 + " two"),
        ("x" * 996 + " two3", "x" * 996),
        ("x" * 1100, "x" * MAX_CHARACTERS),
    ],
)
def test_captions_are_cleaned_and_cut_at_a_word(answer: str, caption: str) -> None:
    assert clean_caption(answer) == caption
