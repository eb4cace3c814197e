"""A data set's manifest: read as it was written, or refused with what to do."""

import json
from pathlib import Path

import pytest

from training.data.shards.manifest import (
    Manifest,
    ShardEntry,
    ShardStore,
    load_manifest,
    save_manifest,
)
from training.data.shards.sample import DataSummary


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


def test_a_folder_without_a_manifest_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="training shards index"):
        ShardStore(tmp_path)


def test_another_format_is_refused(tmp_path: Path, manifest: Manifest) -> None:
    save_manifest(tmp_path, manifest)
    path = tmp_path / "manifest.json"
    content = json.loads(path.read_text()) | {"format": 2}
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="format 2"):
        load_manifest(tmp_path)
