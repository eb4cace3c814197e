"""Outcomes, journals and input shards of a captioning job."""

import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from training.captioning.journal import (
    Failure,
    Journal,
    JournalBusy,
    Outcome,
    Usage,
    read_journal,
    read_shard,
    settled,
    shard_paths,
    total_usage,
    uncaptioned,
)
from training.data.shards.sample import BadSample, Sample


def outcome(key: str) -> Outcome:
    return Outcome(key=key, caption=f"caption of {key}")


def test_a_new_journal_is_empty(tmp_path: Path) -> None:
    with Journal(tmp_path / "a") as journal:
        assert journal.outcomes == {}


def test_it_is_read_again(tmp_path: Path) -> None:
    with Journal(tmp_path / "a") as journal:
        journal.append([outcome("k1"), outcome("k2")])
        journal.append([outcome("k3")])
        written = dict(journal.outcomes)
    with Journal(tmp_path / "a") as journal:
        assert journal.outcomes == written == read_journal(tmp_path / "a")
        assert list(journal.outcomes) == ["k1", "k2", "k3"]


def test_each_line_is_on_disk_at_once(tmp_path: Path) -> None:
    with Journal(tmp_path / "a") as journal:
        journal.append([outcome("k1")])
        assert list(read_journal(tmp_path / "a")) == ["k1"]


@pytest.mark.parametrize("cut_bytes", [1, 2, 40])
def test_outcomes_made_together_are_there_together(tmp_path: Path, cut_bytes: int) -> None:
    path = tmp_path / "a"
    with Journal(path) as journal:
        journal.append([outcome("k1")])
        journal.append([outcome("k2"), outcome("k3")])
    path.write_bytes(path.read_bytes()[:-cut_bytes])
    with Journal(path) as journal:
        assert list(journal.outcomes) == ["k1"]
        journal.append([outcome("k2")])
    assert list(read_journal(path)) == ["k1", "k2"]


def test_damage_in_the_middle_is_named_and_nothing_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with Journal(path) as journal:
        journal.append([outcome("k1")])
    whole = path.read_bytes()
    path.write_bytes(b"[{]\n" + whole)
    with pytest.raises(ValueError, match="damaged"):
        Journal(path)
    assert path.read_bytes() == b"[{]\n" + whole


def test_a_second_process_cannot_open_it(tmp_path: Path) -> None:
    with Journal(tmp_path / "a"), pytest.raises(JournalBusy):
        Journal(tmp_path / "a")
    with Journal(tmp_path / "a") as journal:
        journal.delete()
    assert not (tmp_path / "a").exists()


def test_no_journal_has_no_outcomes(tmp_path: Path) -> None:
    assert read_journal(tmp_path / "a") == {}
    assert not (tmp_path / "a").exists()


def test_only_failures_that_may_pass_are_open() -> None:
    outcomes = {
        "caption": outcome("caption"),
        "final": Outcome(key="final", failure=Failure(kind="blocked", message="")),
        "passing": Outcome(
            key="passing", failure=Failure(kind="unavailable", message="", is_transient=True)
        ),
    }
    assert list(settled(outcomes)) == ["caption", "final"]


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome(key="a", caption="ein B\u00e4r", usage=Usage(input_tokens=3, output_tokens=2)),
        Outcome(key="b", failure=Failure(kind="empty", message="nothing", is_transient=True)),
    ],
)
def test_it_is_read_as_it_was_written(outcome: Outcome) -> None:
    assert Outcome.from_json(json.loads(json.dumps(outcome.to_json()))) == outcome


def test_it_is_one_of_the_two() -> None:
    with pytest.raises(ValueError, match="either"):
        Outcome(key="a")
    with pytest.raises(ValueError, match="either"):
        Outcome(key="a", caption="x", failure=Failure(kind="empty", message=""))


def test_usage_adds_up() -> None:
    outcomes = [
        Outcome(key=str(i), caption="x", usage=Usage(input_tokens=i, output_tokens=2 * i))
        for i in range(4)
    ]
    assert total_usage(outcomes) == Usage(input_tokens=6, output_tokens=12)


Make = Callable[..., Any]


def tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def test_a_folder_is_listed_in_order(tmp_path: Path) -> None:
    for name in ("b.tar", "a.tar", "c.json"):
        (tmp_path / name).touch()
    assert shard_paths(tmp_path) == [tmp_path / "a.tar", tmp_path / "b.tar"]
    assert shard_paths(tmp_path / "b.tar") == [tmp_path / "b.tar"]


def test_no_shards_is_a_mistake_with_advice(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"folder of \.tar files"):
        shard_paths(tmp_path)


def test_samples_come_in_the_shards_order(shard_of: Make, some_samples: Make) -> None:
    samples = some_samples(0, 4)[::-1]
    assert list(read_shard(shard_of(samples) / "c.tar")) == [(s.key, s) for s in samples]


def test_a_shard_made_elsewhere_is_read(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", {"x/1.png": b"p", "x/1.txt": b"alt", "x/2.cls": b"3"})
    (first_key, first), (second_key, second) = read_shard(path)
    assert (first_key, second_key) == ("x/1", "x/2")
    assert isinstance(first, Sample)
    assert first.captions == {"alt": "alt"}
    assert isinstance(second, BadSample)


def test_a_damaged_shard_is_named(tmp_path: Path, shard_of: Make, some_samples: Make) -> None:
    path = shard_of(some_samples(0, 4)) / "c.tar"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"c\.tar is not a valid tar file"):
        list(read_shard(path))


def test_a_key_that_comes_twice_is_named(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", {"k.png": b"", "l.png": b"", "k.json": b"{}"})
    with pytest.raises(ValueError, match="the key k is repeated"):
        list(read_shard(path))


def test_only_what_lacks_a_caption_is_given(shard_of: Make, some_samples: Make) -> None:
    first, second, third, fourth = some_samples(0, 4)
    has_one = replace(second, captions={"gemini": "x"})
    path = shard_of([first, has_one, third, replace(fourth, suffix=".gif")]) / "c.tar"
    assert list(uncaptioned(path, "gemini", {"k000"})) == [third]
    assert list(uncaptioned(path, "paligemma", ())) == [first, has_one, third]
