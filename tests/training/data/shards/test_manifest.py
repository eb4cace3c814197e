"""A data set of shards: its manifest and its index."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from training.data.shards.image_folder import open_store
from training.data.shards.manifest import ShardStore, index_shards, load_manifest
from training.data.shards.sample import BrokenList, DataSummary


def test_a_folder_without_shards_or_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="training shards index"):
        ShardStore(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no \.tar"):
        index_shards(tmp_path, BrokenList())


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
    assert load_manifest(foreign) == manifest
    counts = DataSummary(num_images=6, num_captioned=5, caption_sources={"alt": 5})
    assert manifest.summary == counts
    assert len(broken) == 1
    store = open_store(foreign)
    assert isinstance(store, ShardStore)
    assert store.shard_sizes.tolist() == [3, 3]
    assert store.name(1, 2) == "00001.tar row 2"
    sample = store.read(1, 1)
    assert sample.captions == {"alt": "text 4"}
    assert sample.fields["url"] == "u4"
    assert sample.key == "000000004"


def test_another_format_is_refused(foreign: Path) -> None:
    index_shards(foreign, BrokenList())
    path = foreign / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2}))
    with pytest.raises(ValueError, match="format 2"):
        load_manifest(foreign)
