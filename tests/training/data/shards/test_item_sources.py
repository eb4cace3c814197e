"""Items for new shards: Parquet rows and composed scenes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from training.data.backgrounds import Photo
from training.data.scenes import SceneConfig, SceneSource, compose_scene
from training.data.shards.decoding import DEFAULT_LIMITS, decode_tensor
from training.data.shards.item_sources import ParquetColumns, ParquetItems, SceneItems
from training.data.shards.manifest import ShardStore
from training.data.shards.sample import BadSample, Sample
from training.data.shards.writing import ShardPlan, build_shards

Encode = Callable[..., bytes]

COLUMNS = ParquetColumns(
    image="image", captions={"alt": "text", "gemini": "long"}, kept=("url", "license")
)


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


def good(items: ParquetItems, start: int, stop: int) -> list[Sample]:
    """Read items none of which is broken."""
    found = [item for _, item in items.items(start, stop)]
    return [item for item in found if isinstance(item, Sample)]


def test_rows_of_several_files_become_samples(tmp_path: Path, encode: Encode) -> None:
    kinds = ["PNG", "JPEG", "WEBP", "PNG", "PNG", "PNG", "PNG", "PNG"]
    data = [encode(number, kind=kind) for number, kind in enumerate(kinds)]
    files = [
        write(tmp_path / "one.parquet", data[:5]),
        write(tmp_path / "two.parquet", data[5:], start=5),
    ]
    items = ParquetItems(files, COLUMNS, root=tmp_path)
    assert len(items) == 8
    samples = good(items, 0, 8)
    assert [sample.image for sample in samples] == data
    assert [sample.suffix for sample in samples[:3]] == [".png", ".jpg", ".webp"]
    assert samples[0].captions == {"gemini": "long 0"}
    assert samples[5].captions == {"alt": "text 5", "gemini": "long 5"}
    assert samples[5].fields == {"url": "u5", "license": "CC0"}
    assert samples[5].key == "000000005"
    assert good(items, 3, 7) == samples[3:7]
    assert [place for place, _ in items.items(4, 6)] == ["one.parquet row 4", "two.parquet row 0"]


def test_images_may_be_structs_or_paths(tmp_path: Path, encode: Encode) -> None:
    (tmp_path / "a.png").write_bytes(encode(1))
    structs = [{"bytes": encode(0), "path": None}, {"bytes": None, "path": "a.png"}]
    paths = ["a.png", "missing.png"]
    as_structs = ParquetItems([write(tmp_path / "s.parquet", structs)], COLUMNS, root=tmp_path)
    assert [sample.image for sample in good(as_structs, 0, 2)] == [encode(0), encode(1)]
    as_paths = ParquetItems([write(tmp_path / "p.parquet", paths)], COLUMNS, root=tmp_path)
    first, second = (item for _, item in as_paths.items(0, 2))
    assert isinstance(first, Sample)
    assert isinstance(second, BadSample)


@pytest.mark.parametrize("path", ["../secret.png", "/etc/hostname", None])
def test_a_path_stays_in_its_folder(tmp_path: Path, path: str | None) -> None:
    (tmp_path / "secret.png").write_bytes(b"x")
    file = write(tmp_path / "p.parquet", [path, "a.png"])
    (tmp_path / "root").mkdir()
    items = ParquetItems([file], COLUMNS, root=tmp_path / "root")
    (_, first), *_ = items.items(0, 1)
    assert isinstance(first, BadSample)


def test_a_missing_column_and_no_file_are_refused(tmp_path: Path, encode: Encode) -> None:
    file = write(tmp_path / "one.parquet", [encode(0)])
    with pytest.raises(ValueError, match=r"no column \['jpg'\]"):
        ParquetItems([file], ParquetColumns(image="jpg"), root=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no file .*two\.parquet"):
        ParquetItems([file, tmp_path / "two.parquet"], COLUMNS, root=tmp_path)
    with pytest.raises(ValueError, match="at least one"):
        ParquetItems([], COLUMNS, root=tmp_path)


CONFIG = SceneConfig(size=28, count_weights=(0.5, 0.5), min_size=0.5, max_size=0.9)


def test_scenes_become_samples_without_their_masks(tmp_path: Path, source: SceneSource) -> None:
    items = SceneItems(source=source, config=CONFIG, count=5)
    build_shards(items, tmp_path, ShardPlan(kind="scenes", shard_size=3), is_shown=False)
    store = ShardStore(tmp_path)
    assert store.shard_sizes.tolist() == [3, 2]
    for index in range(5):
        scene, sample = compose_scene(source, index, CONFIG), store.read(*divmod(index, 3))
        pixels_SS3 = decode_tensor(sample.image, DEFAULT_LIMITS).permute(1, 2, 0).numpy()
        assert np.array_equal(pixels_SS3, scene.pixels_SS3)
        assert sample.captions == scene.captions.by_source()
        assert sample.names == scene.captions.names
        assert set(sample.members()) == {f"{index:09d}.png", f"{index:09d}.json"}
        assert not sample.fields


def test_the_fingerprint_changes_with_the_columns_and_the_scenes(
    tmp_path: Path, encode: Encode, source: SceneSource
) -> None:
    file = write(tmp_path / "one.parquet", [encode(0)])
    rows, again, other = (
        ParquetItems([file], columns, root=tmp_path).fingerprint()
        for columns in (COLUMNS, COLUMNS, ParquetColumns())
    )
    assert rows == again != other
    items = SceneItems(source=source, config=CONFIG, count=5)
    assert replace(items, count=7).fingerprint() == items.fingerprint()
    photo = Photo(pixels_HW3=np.zeros((4, 4, 3), np.uint8), phrase="a night")
    for changed in (
        replace(items, config=replace(CONFIG, size=42)),
        replace(items, source=replace(source, seed=1)),
        replace(items, source=replace(source, photos=(photo,))),
        replace(items, source=replace(source, keywords={"dog": ("bark",)})),
    ):
        assert changed.fingerprint() != items.fingerprint()
