"""Packages are found by what they were made from."""

import shutil
from pathlib import Path

import pytest

from model.conversion.cache import (
    PackageCache,
    content_of,
    default_cache,
    key_of,
)
from model.conversion.errors import CacheError

KEY, OTHER_KEY = "0" * 20, "1" * 20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_bytes(b"{}")
    (path / "model.safetensors").write_bytes(b"weights")
    return path


def test_every_file_that_is_read_counts_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    before = content_of(folder)
    (folder / "README.md").write_text("A card.", encoding="utf-8")
    (folder / ".cache").mkdir()
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "model.safetensors").touch()
    assert content_of(copy) == before
    (folder / "model.safetensors").write_bytes(b"weightz")
    changed = content_of(folder)
    (folder / "tokenizer.json").write_bytes(b"{}")
    assert len({str(content) for content in (before, changed, content_of(folder))}) == 3


def test_the_key_depends_on_everything_but_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {
        key_of({"a": 1}, None, ["fp32"]),
        key_of({"a": 2}, None, ["fp32"]),
        key_of({"a": 1}, {"a": 1}, ["fp32"]),
        key_of({"a": 1}, {"a": 1}, ["fp32"], depth_activation="relu"),
        key_of({"a": 1}, None, ["fp32", "fp16"]),
    }
    assert key_of({"a": 1}, None, ["fp16", "fp32"]) in keys
    monkeypatch.setattr("model.conversion.cache.EXPORT_FORMAT", 10**6)
    keys.add(key_of({"a": 1}, None, ["fp32"]))
    assert len(keys) == 6


def test_the_default_folder_is_the_users_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/homes/me")
    assert default_cache({}) == Path("/homes/me/.cache/tipserve")
    assert default_cache({"XDG_CACHE_HOME": "/caches"}) == Path("/caches/tipserve")

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    assert default_cache({}) == Path("/var/cache/tipserve")


def test_leftovers_of_dead_processes_are_removed(cache: PackageCache) -> None:
    packages = cache.root / "packages"
    with cache.writing("b", OTHER_KEY, print) as living:
        (packages / f".{living.name}.abc").mkdir()
        with cache.writing("a", KEY, print) as mine:
            for name in (f".{mine.name}.abc", f".{mine.name}.12.retired", f".c-{KEY}.abc"):
                (packages / name).mkdir()
            (packages / f"d-{KEY}").mkdir()
            (packages / ".keep").mkdir()
            cache.remove_leftovers(mine)
    left = {path.name for path in packages.iterdir()}
    assert left == {f".{living.name}.abc", f"d-{KEY}", ".keep"}


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file", encoding="utf-8")
    cache = PackageCache(tmp_path / "cache")
    with (
        pytest.raises(CacheError, match=r"cannot be written .*--cache or TIPSERVE_CACHE"),
        cache.writing("a", KEY, print),
    ):
        pass
