"""A folder of plain images as a data set."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from training.data.shards.image_folder import ImageFolder
from training.data.shards.sample import BadSample, Sample

Encode = Callable[..., bytes]


@pytest.fixture
def folder(tmp_path: Path, encode: Encode) -> Path:
    """Four images, three of them with captions, among other files."""
    path = tmp_path / "images"
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
    (path / "notes.md").write_text("no image")
    (path / ".hidden/e.png").write_bytes(encode(9))
    return path


def test_images_are_found_in_sub_folders_in_the_order_of_their_names(folder: Path) -> None:
    images = ImageFolder(folder, shard_size=3)
    assert len(images) == 4
    assert images.shard_sizes.tolist() == [3, 1]
    names = [images.name(0, 0), images.name(0, 1), images.name(0, 2), images.name(1, 0)]
    assert names == ["a.JPG", "b.v2.png", "sub/c.webp", "sub/d.jpeg"]


def test_caption_files_have_the_names_of_their_images(folder: Path) -> None:
    images = ImageFolder(folder)
    captions = [images.read(0, row).captions for row in range(4)]
    assert captions == [
        {},
        {"alt": "a caption"},
        {"gemini": "long", "alt": "short"},
        {"alt": "from elsewhere"},
    ]
    third = images.read(0, 2)
    assert third.fields == {"license": "CC0", "file": "sub/c.webp"}
    assert third.suffix == ".webp"
    assert third.key == "000000002"


def test_a_broken_record_breaks_only_its_own_image(folder: Path) -> None:
    (folder / "a.json").write_text("{")
    images = ImageFolder(folder)
    with pytest.raises(BadSample, match="no JSON"):
        images.read(0, 0)
    assert images.summary().num_captioned == 3
    items = dict(images.items(0, 4))
    assert isinstance(items["a.JPG"], BadSample)
    assert isinstance(items["b.v2.png"], Sample)


def test_the_fingerprint_follows_the_images(folder: Path, encode: Encode) -> None:
    before = ImageFolder(folder).fingerprint()
    assert ImageFolder(folder).fingerprint() == before
    (folder / "new.png").write_bytes(encode(11))
    assert ImageFolder(folder).fingerprint() != before


@pytest.mark.parametrize("name", ["empty", "missing"])
def test_a_folder_without_images_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no image"):
        ImageFolder(tmp_path / name)
