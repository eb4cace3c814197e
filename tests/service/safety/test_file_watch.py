"""A change is seen once, whichever way the file was changed, and not looked for too often."""

import os
from pathlib import Path

import pytest

from service.safety.tls import FileWatch


class Clock:
    """Seconds that a test moves."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_changed_file_is_seen_once(tmp_path: Path, clock: Clock) -> None:
    file = tmp_path / "file"
    file.write_text("one")
    watch = FileWatch([file], clock=clock)
    file.write_text("three")
    assert not watch.has_changed(), "too soon to look"
    clock.now += 1
    assert watch.has_changed()
    clock.now += 1
    assert not watch.has_changed()


def test_a_link_that_turns_is_a_change(tmp_path: Path, clock: Clock) -> None:
    # As Kubernetes renews a Secret: file -> ..data/file, ..data -> a folder of one version.
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("same text")
    (tmp_path / "..data").symlink_to("old")
    (tmp_path / "file").symlink_to("..data/file")
    watch = FileWatch([tmp_path / "file"], clock=clock)
    (tmp_path / "..tmp").symlink_to("new")
    os.replace(tmp_path / "..tmp", tmp_path / "..data")
    clock.now += 1
    assert watch.has_changed()


def test_a_file_that_goes_and_comes_is_two_changes(tmp_path: Path, clock: Clock) -> None:
    files = [tmp_path / "a", tmp_path / "b"]
    for file in files:
        file.touch()
    watch = FileWatch(files, clock=clock)
    for change in (files[1].unlink, files[1].touch):
        change()
        clock.now += 1
        assert watch.has_changed()
