"""Plain images as a data set, and the commands that make shards of them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from training.__main__ import main
from training.data.shards.store import ImageFolder, ShardStore

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


def test_images_and_captions_are_found_in_the_order_of_their_names(folder: Path) -> None:
    images = ImageFolder(folder, shard_size=3)
    assert (len(images.names), images.shard_sizes.tolist()) == (4, [3, 1])
    places = [(0, 0), (0, 1), (0, 2), (1, 0)]
    names = ["a.JPG", "b.v2.png", "sub/c.webp", "sub/d.jpeg"]
    assert [images.name(*place) for place in places] == names
    found = [images.read(*place) for place in places]
    assert [sample.captions for sample in found] == [
        {}, {"alt": "a caption"}, {"gemini": "long", "alt": "short"}, {"alt": "from elsewhere"}
    ]  # fmt: skip
    assert found[2].fields == {"license": "CC0", "file": "sub/c.webp"}
    assert (found[2].suffix, found[2].key) == (".webp", "000000002")


@pytest.mark.parametrize("name", ["empty", "missing"])
def test_a_folder_without_images_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no image"):
        ImageFolder(tmp_path / name)


def test_commands_write_shards_index_and_describe_them(
    make_images: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, out = make_images(count=3, captioned=1), tmp_path / "out"

    def printed(*arguments: object) -> str:
        assert main(["shards", *map(str, arguments)]) == 0
        return capsys.readouterr().out

    (images / "2.json").write_text("{")
    assert "holds plain images" in printed("describe", images)
    said = printed("folder", images, "--output", out, "--shard-size", 2)
    assert "3 images, 1 of them with captions (alt 1); captions left out: the .json fi" in said
    assert ShardStore(out).read(0, 0).captions == {"alt": "a plain wall, number 0"}
    (out / "manifest.json").unlink()
    assert "holds shards: 3 images" in printed("index", out)
    assert main(["shards", "index", str(out), "--shard-size", "2"]) == 2
    assert "--shard-size is an option of `shards folder` only" in capsys.readouterr().err
