"""Plain folders: whatever is in them, with captions or without."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from training.data.shards.picture_folder import PictureFolder
from training.data.shards.sample import BadSample, Sample


@pytest.fixture
def folder(tmp_path: Path, encode: Callable[..., bytes]) -> Path:
    """Four pictures, three of them with captions, among other files."""
    path = tmp_path / "pictures"
    (path / "sub").mkdir(parents=True)
    (path / ".hidden").mkdir()
    for number, name in enumerate(("b.v2.png", "a.JPG", "sub/c.webp", "sub/d.jpeg")):
        kind = {"png": "PNG", "webp": "WEBP"}.get(name.rpartition(".")[2], "JPEG")
        (path / name).write_bytes(encode(number, kind=kind))
    (path / "b.v2.txt").write_text("a caption\n")
    (path / "sub/c.json").write_text(json.dumps({"captions": {"gemini": "long"}, "license": "CC0"}))
    (path / "sub/c.txt").write_text("short")
    (path / "a.txt").write_text("  ")
    (path / "sub/d.json").write_text(json.dumps({"caption": "from elsewhere"}))
    (path / "notes.md").write_text("no picture")
    (path / ".hidden/e.png").write_bytes(encode(9))
    return path


def test_pictures_are_found_in_sub_folders_in_the_order_of_their_names(folder: Path) -> None:
    pictures = PictureFolder(folder, shard_size=3)
    assert len(pictures) == 4
    assert pictures.shard_sizes.tolist() == [3, 1]
    names = [pictures.name(0, 0), pictures.name(0, 1), pictures.name(0, 2), pictures.name(1, 0)]
    assert names == ["a.JPG", "b.v2.png", "sub/c.webp", "sub/d.jpeg"]


def test_captions_lie_beside_their_pictures(folder: Path) -> None:
    pictures = PictureFolder(folder)
    captions = [pictures.read(0, row).captions for row in range(4)]
    assert captions == [
        {},
        {"alt": "a caption"},
        {"gemini": "long", "alt": "short"},
        {"alt": "from elsewhere"},
    ]
    third = pictures.read(0, 2)
    assert third.fields == {"license": "CC0", "file": "sub/c.webp"}
    assert third.suffix == ".webp"
    assert third.key == "000000002"


def test_the_summary_counts_pictures_and_captions(folder: Path) -> None:
    summary = PictureFolder(folder).summary()
    assert (summary.num_pictures, summary.num_captioned, summary.num_named) == (4, 3, 0)
    assert summary.caption_sources == {"alt": 3, "gemini": 1}


def test_a_broken_record_is_the_picture_s_own_misfortune(folder: Path) -> None:
    (folder / "a.json").write_text("{")
    pictures = PictureFolder(folder)
    with pytest.raises(BadSample, match="no JSON"):
        pictures.read(0, 0)
    assert pictures.summary().num_captioned == 3
    items = dict(pictures.items(0, 4))
    assert isinstance(items["a.JPG"], BadSample)
    assert isinstance(items["b.v2.png"], Sample)


def test_the_fingerprint_follows_the_pictures(folder: Path, encode: Callable[..., bytes]) -> None:
    before = PictureFolder(folder).fingerprint()
    assert PictureFolder(folder).fingerprint() == before
    (folder / "new.png").write_bytes(encode(11))
    assert PictureFolder(folder).fingerprint() != before


@pytest.mark.parametrize("name", ["empty", "missing"])
def test_a_folder_without_pictures_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no picture"):
        PictureFolder(tmp_path / name)
