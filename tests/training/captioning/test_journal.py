"""What was written is there after a kill; what was half written is not."""

from pathlib import Path

import pytest

from training.captioning.journal import (
    Failure,
    Journal,
    JournalBusy,
    Outcome,
    read_journal,
    settled,
)


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


def test_nobody_else_may_open_it(tmp_path: Path) -> None:
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
