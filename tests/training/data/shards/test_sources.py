"""Items for new shards: plain images and Parquet rows."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from training.data.shards.image_folder import ImageFolder
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


def test_a_broken_record_breaks_only_its_own_image(folder: Path) -> None:
    (folder / "a.json").write_text("{")
    images = ImageFolder(folder)
    assert images.summary().num_captioned == 3
    assert [sample is None for sample in read(images, 0, 4)] == [True, False, False, False]


@pytest.mark.parametrize("name", ["empty", "missing"])
def test_a_folder_without_images_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no image"):
        ImageFolder(tmp_path / name)


def write(path: Path, images: list[Any], *, start: int = 0) -> Path:
    """Write rows with two caption columns, two rows a group."""
    rows = range(start, start + len(images))
    table = pa.table(
        {
            "image": images,
            "text": [f"text {row}" if row % 2 else None for row in rows],
            "long": [f"long {row}" for row in rows],
            "url": [f"u{row}" for row in rows],
            "license": ["CC0" for _ in rows],
        }
    )
    pq.write_table(table, path, row_group_size=2)
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
    assert [place for place, _ in items.items(4, 6)] == ["one.parquet row 4", "two.parquet row 0"]


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


def test_a_missing_column_and_no_file_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "one.parquet", [b"x"])
    with pytest.raises(ValueError, match=r"no column \['jpg'\]"):
        ParquetItems([file], ParquetColumns(image="jpg"), root=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no file .*two\.parquet"):
        ParquetItems([file, tmp_path / "two.parquet"], COLUMNS, root=tmp_path)
    with pytest.raises(ValueError, match="at least one"):
        ParquetItems([], COLUMNS, root=tmp_path)


def test_the_fingerprint_changes_with_what_is_read(
    tmp_path: Path, folder: Path, encode: Encode
) -> None:
    before, same = ImageFolder(folder).fingerprint(), ImageFolder(folder).fingerprint()
    (folder / "new.png").write_bytes(encode(11))
    assert before == same != ImageFolder(folder).fingerprint()
    file = write(tmp_path / "one.parquet", [encode(0)])
    rows, again, other = (
        ParquetItems([file], columns, root=tmp_path).fingerprint()
        for columns in (COLUMNS, COLUMNS, ParquetColumns())
    )
    assert rows == again != other
