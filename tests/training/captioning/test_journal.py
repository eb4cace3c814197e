"""Outcomes, journals and input shards of a captioning job."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.training.captioning.fakes import make_samples
from training.captioning.journal import (
    Failure,
    Journal,
    JournalBusy,
    Outcome,
    Usage,
    read_journal,
    read_shard,
    shard_paths,
)
from training.data.shards.sample import BadSample, Sample


def outcome(key: str) -> Outcome:
    return Outcome(key=key, caption=f"caption of {key}")


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


def test_a_shard_made_elsewhere_is_read(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", {"x/1.png": b"p", "x/1.txt": b"alt", "x/2.cls": b"3"})
    (first_key, first), (second_key, second) = read_shard(path)
    assert (first_key, second_key) == ("x/1", "x/2")
    assert isinstance(first, Sample)
    assert first.captions == {"alt": "alt"}
    assert isinstance(second, BadSample)


def test_a_damaged_shard_is_named(tmp_path: Path, shard_of: Make) -> None:
    path = shard_of(make_samples(0, 4)) / "c.tar"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"c\.tar is not a valid tar file"):
        list(read_shard(path))


def test_a_key_that_comes_twice_is_named(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", {"k.png": b"", "l.png": b"", "k.json": b"{}"})
    with pytest.raises(ValueError, match="the key k is repeated"):
        list(read_shard(path))
