"""Items for new shards, plain images and Parquet rows, and the commands that make them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from training.__main__ import main
from training.data.shards.image_folder import ImageFolder
from training.data.shards.manifest import ShardStore
from training.data.shards.parquet import ParquetColumns, ParquetItems
from training.data.shards.sample import BadSample, Sample
from training.data.shards.writing import SampleSource

Encode = Callable[..., bytes]

COLUMNS = ParquetColumns(
    image="image", captions={"alt": "text", "gemini": "long"}, kept=("url", "license")
)


def read(source: SampleSource, start: int, stop: int) -> list[Sample | None]:
    """Read items; None for a broken one."""
    found: list[Sample | None] = []
    for _, item in source.items(start, stop):
        try:
            found.append(item())
        except BadSample:
            found.append(None)
    return found


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
    assert (len(images), images.shard_sizes.tolist()) == (4, [3, 1])
    places = [(0, 0), (0, 1), (0, 2), (1, 0)]
    names = ["a.JPG", "b.v2.png", "sub/c.webp", "sub/d.jpeg"]
    assert [images.name(*place) for place in places] == names
    found = [images.read(*place) for place in places]
    assert [sample.captions for sample in found] == [
        {}, {"alt": "a caption"}, {"gemini": "long", "alt": "short"}, {"alt": "from elsewhere"}
    ]  # fmt: skip
    assert found[2].fields == {"license": "CC0", "file": "sub/c.webp"}
    assert (found[2].suffix, found[2].key) == (".webp", "000000002")
    before = images.fingerprint()
    (folder / "a.json").write_text("{")
    assert ImageFolder(folder).fingerprint() == before
    assert ImageFolder(folder).summary().num_captioned == 3
    assert None not in read(ImageFolder(folder), 0, 4)
    (folder / "new.png").write_bytes(b"")
    assert ImageFolder(folder).fingerprint() != before


@pytest.mark.parametrize("name", ["empty", "missing"])
def test_a_folder_without_images_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no image"):
        ImageFolder(tmp_path / name)


def write(path: Path, images: list[Any], *, start: int = 0) -> Path:
    """Write rows with two caption columns, two rows a group."""
    rows = range(start, start + len(images))
    table = {
        "image": images,
        "text": [f"text {row}" if row % 2 else None for row in rows],
        "long": [f"long {row}" for row in rows],
        "url": [f"u{row}" for row in rows],
        "license": ["CC0" for _ in rows],
    }
    pq.write_table(pa.table(table), path, row_group_size=2)
    return path


def test_rows_of_several_files_become_samples(tmp_path: Path, encode: Encode) -> None:
    kinds = ["PNG", "JPEG", "WEBP", "PNG", "PNG", "PNG", "PNG", "PNG"]
    data = [encode(number, kind=kind) for number, kind in enumerate(kinds)]
    one = write(tmp_path / "one.parquet", data[:5])
    two = write(tmp_path / "two.parquet", data[5:], start=5)
    items = ParquetItems([one, two], COLUMNS, root=tmp_path)
    assert len(items) == 8
    samples = [sample for sample in read(items, 0, 8) if sample is not None]
    assert [sample.image for sample in samples] == data
    assert [sample.suffix for sample in samples[:3]] == [".png", ".jpg", ".webp"]
    assert samples[0].captions == {"gemini": "long 0"}
    assert samples[5].captions == {"alt": "text 5", "gemini": "long 5"}
    assert samples[5].fields == {"url": "u5", "license": "CC0"}
    assert samples[5].key == "000000005"
    assert read(items, 3, 7) == samples[3:7]
    assert [place for place, _ in items.items(4, 6)] == [
        "one.parquet group 2 row 0", "two.parquet group 0 row 0"
    ]  # fmt: skip
    same, other = (
        ParquetItems([one, two], columns, root=tmp_path).fingerprint()
        for columns in (COLUMNS, ParquetColumns())
    )
    assert items.fingerprint() == same != other


@pytest.mark.parametrize(
    ("image", "is_read"),
    [
        ({"bytes": b"a", "path": None}, True),
        ({"bytes": None, "path": "a.png"}, True),
        ("a.png", True),
        ("missing.png", False),
        ("../secret.png", False),
        ("/etc/hostname", False),
        (None, False),
    ],
)
def test_an_image_may_be_a_struct_or_a_path_in_its_folder(
    tmp_path: Path, image: object, is_read: bool
) -> None:
    (tmp_path / "root").mkdir()
    for name in ("root/a.png", "secret.png"):
        (tmp_path / name).write_bytes(b"a")
    filler = {"bytes": b"b", "path": "b"} if isinstance(image, dict) else "b"
    file = write(tmp_path / "p.parquet", [image, filler])
    (sample,) = read(ParquetItems([file], COLUMNS, root=tmp_path / "root"), 0, 1)
    assert (sample is not None and sample.image == b"a") is is_read


def test_commands_write_shards_index_and_describe_them(
    make_images: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, out, rows = make_images(count=3, captioned=1), tmp_path / "out", tmp_path / "rows"

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

    names, texts = ["0.png", "missing.png"], ["a", "b"]
    pq.write_table(pa.table({"file": names, "text": texts, "url": texts}), f"{rows}.parquet")
    columns = ("--image", "file", "--caption", "gemini=text", "--keep", "url", "--root", images)
    said = printed("parquet", f"{rows}.parquet", *columns, "--output", rows)
    assert "1 broken samples are left out: there is no file " in said
    sample = ShardStore(rows).read(0, 0)
    assert (sample.captions, sample.fields) == ({"gemini": "a"}, {"url": "a"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["one.parquet", "--image", "jpg"], "no column ['jpg']"),
        (["one.parquet", "two.parquet"], "no file two.parquet"),
        (["one.parquet", "--caption", "text"], "SOURCE=COLUMN"),
    ],
)
def test_wrong_columns_and_files_are_named(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("one.parquet"), [b"x"])
    assert main(["shards", "parquet", *arguments, "--output", "out"]) == 2
    assert message in capsys.readouterr().err
