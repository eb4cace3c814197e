"""Packages are found by what they were made from, and written once."""

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from model.conversion.cache import (
    PackageCache,
    check_space,
    content_of,
    default_cache,
    key_of,
    weight_bytes,
)
from model.conversion.errors import CacheError
from model.conversion.source import HubSource

# The same content has the same key; any change of it, or of what is asked for, another.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_bytes(b"{}")
    (path / "model.safetensors").write_bytes(b"weights")
    return path


def test_where_it_lies_and_what_stands_beside_it_change_nothing(
    folder: Path, tmp_path: Path
) -> None:
    before = content_of(folder)
    (folder / "README.md").write_text("A card.", encoding="utf-8")
    (folder / ".cache").mkdir()
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "model.safetensors").touch()
    assert content_of(copy) == before


def test_every_byte_that_is_read_counts(folder: Path) -> None:
    before = content_of(folder)
    (folder / "model.safetensors").write_bytes(b"weightz")
    changed = content_of(folder)
    (folder / "tokenizer.json").write_bytes(b"{}")
    assert len({str(content) for content in (before, changed, content_of(folder))}) == 3


def test_a_file_is_known_by_its_content(folder: Path) -> None:
    assert content_of(folder / "config.json") == {"config.json": content_of(folder)["config.json"]}


def test_what_is_asked_for_is_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {
        key_of({"a": 1}, None, ["fp32"]),
        key_of({"a": 2}, None, ["fp32"]),
        key_of({"a": 1}, {"a": 1}, ["fp32"]),
        key_of({"a": 1}, None, ["fp32", "fp16"]),
    }
    assert key_of({"a": 1}, None, ["fp16", "fp32"]) in keys
    monkeypatch.setattr("model.conversion.cache.EXPORT_FORMAT", 10**6)
    keys.add(key_of({"a": 1}, None, ["fp32"]))
    assert len(keys) == 5


def test_only_weights_weigh(folder: Path) -> None:
    assert weight_bytes(folder) == len(b"weights")
    assert weight_bytes(folder / "model.safetensors") == len(b"weights")


# The cache's folder: where it is, what dead processes left, what is too large for its disk.

KEY, OTHER_KEY = "0" * 20, "1" * 20


def test_the_folder_is_where_caches_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/homes/me")
    assert default_cache({}) == Path("/homes/me/.cache/tipserve")
    assert default_cache({"XDG_CACHE_HOME": "/caches"}) == Path("/caches/tipserve")

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    assert default_cache({}) == Path("/var/cache/tipserve")


def test_what_dead_processes_left_is_removed(cache: PackageCache) -> None:
    packages = cache.root / "packages"
    with cache.writing("b", OTHER_KEY, print) as living:
        (packages / f".{living.name}.abc").mkdir()
        with cache.writing("a", KEY, print) as mine:
            for name in (f".{mine.name}.abc", f".{mine.name}.12.retired", f".c-{KEY}.abc"):
                (packages / name).mkdir()
            (packages / f"d-{KEY}").mkdir()
            (packages / ".keep").mkdir()
            cache.remove_leftovers(mine)
    assert {path.name for path in packages.iterdir()} == {
        *(f".{living.name}.abc", f"d-{KEY}", ".keep")
    }


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file", encoding="utf-8")
    cache = PackageCache(tmp_path / "cache")
    with (
        pytest.raises(CacheError, match=r"cannot be written .*--cache or TIPSERVE_CACHE"),
        cache.writing("a", KEY, print),
    ):
        pass


def test_revisions_are_remembered(cache: PackageCache) -> None:
    source, other = HubSource("google/a", "refs/pr/1"), HubSource("google/a")
    assert cache.known_commit(source) is None
    cache.remember_commit(source, "a" * 40)
    cache.remember_commit(source, "b" * 40)
    assert cache.known_commit(source) == "b" * 40
    assert cache.known_commit(other) is None
    cache.remember_commit(other, "no commit")
    assert cache.known_commit(other) is None


class Usage(NamedTuple):
    """Of a disk, in bytes."""

    total: int
    used: int
    free: int


def test_room_is_looked_for_on_the_disk_that_will_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    def usage(path: Path) -> Usage:
        asked.append(path)
        return Usage(10**12, 0, 5 * 10**9)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    check_space(tmp_path / "not" / "yet", 5 * 10**9)
    assert asked == [tmp_path]
    with pytest.raises(CacheError, match=r"needs about 6\.0 GB .* 5\.0 GB free; free space"):
        check_space(tmp_path, 6 * 10**9)
