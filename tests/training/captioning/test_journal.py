"""Outcomes, journals and input shards of a captioning job."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

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

FIRST = Outcome(key="k1", caption="ein B\u00e4r", usage=Usage(input_tokens=3, output_tokens=2))
SECOND = Outcome(key="k2", failure=Failure(kind="empty", message="nothing", is_transient=True))
THIRD = Outcome(key="k3", caption="a bear")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def test_each_batch_is_on_disk_at_once_and_is_read_as_it_was_written(path: Path) -> None:
    with Journal(path) as journal:
        journal.append([FIRST, SECOND])
        assert read_journal(path) == {"k1": FIRST, "k2": SECOND}
        journal.append([THIRD])
    with Journal(path) as journal:
        assert journal.outcomes == read_journal(path)
        assert list(journal.outcomes.values()) == [FIRST, SECOND, THIRD]


@pytest.mark.parametrize("cut_bytes", [1, 2, 40])
def test_a_batch_that_was_cut_off_is_dropped_as_a_whole(path: Path, cut_bytes: int) -> None:
    with Journal(path) as journal:
        journal.append([FIRST])
        journal.append([SECOND, THIRD])
    path.write_bytes(path.read_bytes()[:-cut_bytes])
    with Journal(path) as journal:
        assert list(journal.outcomes) == ["k1"]
        journal.append([SECOND])
    assert list(read_journal(path)) == ["k1", "k2"]


def test_damage_in_the_middle_is_an_error_and_loses_nothing(path: Path) -> None:
    with Journal(path) as journal:
        journal.append([FIRST])
    damaged = b"[{]\n" + path.read_bytes()
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="damaged"):
        Journal(path)
    assert path.read_bytes() == damaged


def test_a_second_process_cannot_open_it(path: Path) -> None:
    with Journal(path), pytest.raises(JournalBusy):
        Journal(path)
    with Journal(path) as journal:
        journal.delete()
    assert not path.exists()


def test_a_folder_is_listed_in_order(tmp_path: Path) -> None:
    for name in ("b.tar", "a.tar", "c.json"):
        (tmp_path / name).touch()
    assert shard_paths(tmp_path) == [tmp_path / "a.tar", tmp_path / "b.tar"]
    assert shard_paths(tmp_path / "b.tar") == [tmp_path / "b.tar"]


def tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def test_a_shard_made_elsewhere_is_read(path: Path) -> None:
    (first_key, first), (second_key, second) = read_shard(
        tar(path, {"x/1.png": b"p", "x/1.txt": b"alt", "x/2.cls": b"3"})
    )
    assert (first_key, second_key) == ("x/1", "x/2")
    assert isinstance(first, Sample)
    assert first.captions == {"alt": "alt"}
    assert isinstance(second, BadSample)


def test_a_damaged_shard_and_a_repeated_key_are_errors(
    path: Path, shard_of: Callable[[list[Sample]], Path]
) -> None:
    with pytest.raises(ValueError, match="the key k is repeated"):
        list(read_shard(tar(path, {"k.png": b"", "l.png": b"", "k.json": b"{}"})))
    shard = shard_of(make_samples(0, 4)) / "c.tar"
    shard.write_bytes(shard.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"c\.tar is not a valid tar file"):
        list(read_shard(shard))
