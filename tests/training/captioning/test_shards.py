"""Shards are read from their beginning, ours and those of others."""

import io
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from training.captioning.journal import read_shard, shard_paths, uncaptioned
from training.data.shards.sample import BadSample, Sample

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
