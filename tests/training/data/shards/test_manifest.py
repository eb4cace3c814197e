"""A data set of shards: its manifest and its index."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from training.data.shards.image_folder import open_store
from training.data.shards.manifest import (
    Manifest,
    ShardEntry,
    ShardStore,
    index_shards,
    load_manifest,
    save_manifest,
)
from training.data.shards.sample import BrokenList, DataSummary


@pytest.fixture
def manifest() -> Manifest:
    """Two shards."""
    entries = [
        ShardEntry(
            name=f"shard-{number:06d}.tar",
            num_bytes=10,
            sha256="0" * 64,
            num_skipped=number,
            summary=DataSummary(num_images=5, num_captioned=2, caption_sources={"alt": 2}),
        )
        for number in range(2)
    ]
    return Manifest(origin={"kind": "folder"}, shards=entries)


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path, manifest: Manifest) -> None:
    save_manifest(tmp_path, manifest)
    assert load_manifest(tmp_path) == manifest
    assert load_manifest(tmp_path).summary.num_images == 10
    assert load_manifest(tmp_path).num_skipped == 1
    store = ShardStore(tmp_path)
    assert store.shard_sizes.tolist() == [5, 5]
    assert store.name(1, 3) == "shard-000001.tar row 3"
    assert store.summary().caption_sources == {"alt": 4}


def test_a_folder_without_shards_or_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="training shards index"):
        ShardStore(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no \.tar"):
        index_shards(tmp_path, BrokenList())


def test_another_format_is_refused(tmp_path: Path, manifest: Manifest) -> None:
    save_manifest(tmp_path, manifest)
    path = tmp_path / "manifest.json"
    content = json.loads(path.read_text()) | {"format": 2}
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="format 2"):
        load_manifest(tmp_path)


@pytest.fixture
def foreign(tmp_path: Path, encode: Callable[..., bytes], tar_of: Callable[..., None]) -> Path:
    """Two shards of three images with .txt and .json, the last one's record broken."""
    for shard in range(2):
        files = {}
        for number in range(shard * 3, shard * 3 + 3):
            record = json.dumps({"caption": f"text {number}", "url": f"u{number}"}).encode()
            files[f"{number:09d}.jpg"] = encode(number, kind="JPEG")
            files[f"{number:09d}.txt"] = f"text {number}".encode()
            files[f"{number:09d}.json"] = b"{" if number == 5 else record
        tar_of(tmp_path / f"{shard:05d}.tar", files)
    return tmp_path


def test_foreign_shards_are_read_once_they_are_indexed(foreign: Path) -> None:
    with pytest.raises(FileNotFoundError, match="shards index"):
        open_store(foreign)
    broken = BrokenList()
    manifest = index_shards(foreign, broken)
    assert manifest.summary.num_images == 6
    assert manifest.summary.num_captioned == 5
    assert len(broken) == 1
    store = open_store(foreign)
    assert isinstance(store, ShardStore)
    sample = store.read(1, 1)
    assert sample.captions == {"alt": "text 4"}
    assert sample.fields["url"] == "u4"
    assert sample.key == "000000004"
