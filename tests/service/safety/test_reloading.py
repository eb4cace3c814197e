"""Small files are read again when they change, and the last good contents stay."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from service.safety.reloading import Reloaded
from tests.service.conftest import Clock


def parse(contents: Sequence[bytes]) -> list[str]:
    if b"bad" in contents:
        raise ValueError("it is bad")
    return [content.decode() for content in contents]


def test_changes_are_read_once_a_second_and_the_last_good_contents_stay(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = files = [tmp_path / "a", tmp_path / "b"]
    for file in files:
        file.write_text("one")
    watched = Reloaded("the files", files, parse, clock=clock)
    first.write_text("two")
    assert watched.current() == ["one", "one"], "looked at only once a second"
    clock.now += 1
    assert watched.current() == ["two", "one"]
    for change in (lambda: second.write_text("bad"), second.unlink):
        change()
        for _ in range(3):
            clock.now += 1
            assert watched.current() == ["two", "one"]
    errors = [r.message for r in caplog.records if r.levelno == logging.ERROR]
    assert len(errors) == 2, "each said once"
    assert errors[0] == "the files did not change: it is bad"
    second.write_text("three")
    clock.now += 1
    assert watched.current() == ["two", "three"]


def test_a_replaced_link_is_a_change(tmp_path: Path, clock: Clock) -> None:
    # As Kubernetes renews a Secret: file -> ..data/file, ..data -> a folder of one version.
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    (tmp_path / "..data").symlink_to("old")
    (tmp_path / "file").symlink_to("..data/file")
    watched = Reloaded("the file", [tmp_path / "file"], parse, clock=clock)
    (tmp_path / "..tmp").symlink_to("new")
    os.replace(tmp_path / "..tmp", tmp_path / "..data")
    clock.now += 1
    assert watched.current() == ["new"]
