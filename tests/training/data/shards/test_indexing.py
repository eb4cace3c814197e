"""Shards from elsewhere, as img2dataset leaves them, without a list of offsets."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from training.data.shards.image_folder import open_store
from training.data.shards.manifest import ShardStore, index_shards
from training.data.shards.sample import BrokenList


@pytest.fixture
def foreign(tmp_path: Path, encode: Callable[..., bytes]) -> Path:
    """Two shards of three images with .txt and .json, the last one's record broken."""
    folder = tmp_path / "foreign"
    folder.mkdir()
    for shard in range(2):
        with tarfile.open(folder / f"{shard:05d}.tar", "w", format=tarfile.GNU_FORMAT) as archive:
            for row in range(3):
                number = shard * 3 + row
                record = json.dumps({"caption": f"text {number}", "url": f"u{number}"}).encode()
                files = {
                    "jpg": encode(number, kind="JPEG"),
                    "txt": f"text {number}".encode(),
                    "json": b"{" if number == 5 else record,
                }
                for suffix, content in files.items():
                    entry = tarfile.TarInfo(f"{number:09d}.{suffix}")
                    entry.size = len(content)
                    archive.addfile(entry, io.BytesIO(content))
    return folder


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


def test_a_folder_without_shards_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no \.tar"):
        index_shards(tmp_path, BrokenList())
