"""Packages are found by what they were made from."""

from pathlib import Path

import pytest

from model.conversion.cache import PackageCache, key_of
from model.conversion.errors import CacheError

KEY, OTHER_KEY = "0" * 20, "1" * 20


def test_the_key_depends_on_everything_but_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_leftovers_of_dead_processes_are_removed(cache: PackageCache) -> None:
    packages = cache.root / "packages"
    with cache.writing("b", OTHER_KEY, print) as living:
        left = {f".{living.name}.abc", f"d-{KEY}", ".keep"}
        for name in (*left, f".a-{KEY}.abc", f".a-{KEY}.12.retired", f".c-{KEY}.abc"):
            (packages / name).mkdir()
        with cache.writing("a", KEY, print):
            pass
    assert {path.name for path in packages.iterdir()} == left


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file", encoding="utf-8")
    cache = PackageCache(tmp_path / "cache")
    with (
        pytest.raises(CacheError, match=r"cannot be written or locked .*--cache or TIPSERVE_CACHE"),
        cache.writing("a", KEY, print),
    ):
        pass
