"""Shards: whole files only, resumable, read sample by sample, of ours and of others."""

import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from training.data.shards.decoding import DEFAULT_LIMITS
from training.data.shards.image_folder import ImageFolder, open_store
from training.data.shards.manifest import (
    Manifest,
    ShardStore,
    find_damage,
    index_shards,
    load_manifest,
)
from training.data.shards.parquet import ParquetColumns, ParquetItems
from training.data.shards.sample import BadSample, BrokenList, DataSummary, ReadSample, Sample
from training.data.shards.tar_shard import (
    find_offsets,
    load_offsets,
    offsets_path,
    read_sample,
    write_offsets,
    write_shard,
)
from training.data.shards.writing import ShardPlan, build_shards

Build = Callable[..., Manifest]
WriteTar = Callable[..., None]
PLAN = ShardPlan(kind="folder", shard_size=5)


@pytest.fixture
def path(tmp_path: Path, samples: list[Sample]) -> Path:
    """A shard of all samples."""
    path = tmp_path / "shard-000000.tar"
    assert write_shard(path, samples) == len(samples)
    return path


def test_any_sample_is_read_alone(path: Path, samples: list[Sample]) -> None:
    assert [read_sample(path, row) for row in reversed(range(len(samples)))] == samples[::-1]


def test_a_shard_depends_on_its_samples_alone(path: Path, samples: list[Sample]) -> None:
    write_shard(path.with_name("two.tar"), samples)
    assert path.read_bytes() == path.with_name("two.tar").read_bytes()
    assert np.array_equal(find_offsets(path), load_offsets(path))


@pytest.mark.parametrize("layout", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_names_and_orders_of_other_writers_are_read(
    tmp_path: Path, tar_of: WriteTar, layout: int
) -> None:
    """The image before its record is what earlier versions wrote."""
    long = "x" * (90 if layout == tarfile.USTAR_FORMAT else 150)
    path, name = tmp_path / "foreign.tar", f"d\u00e9j\u00e0/{long}"
    files = {f"{name}/": b"", f"{name}.png": b"image", f"{name}.txt": b"a caption"}
    tar_of(path, {**files, "2.png": b"second", "2.json": b'{"captions": {}}'}, layout=layout)
    write_offsets(path, find_offsets(path))
    sample = read_sample(path, 0)
    assert (sample.key, sample.image, sample.captions) == (name, b"image", {"alt": "a caption"})
    assert read_sample(path, 1).image == b"second"


def test_a_file_that_ends_early_is_no_shard(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(ValueError, match="no whole tar file"):
        find_offsets(path)


def test_a_damaged_part_breaks_its_own_sample_only(path: Path, samples: list[Sample]) -> None:
    start = int(load_offsets(path)[3])
    content = bytearray(path.read_bytes())
    content[start : start + 512] = b"\xff" * 512
    path.write_bytes(content)
    with pytest.raises(BadSample):
        read_sample(path, 3)
    assert read_sample(path, 4) == samples[4]


def test_what_is_missing_is_an_error_with_advice(path: Path, tmp_path: Path) -> None:
    offsets_path(path).unlink()
    with pytest.raises(FileNotFoundError, match="shards index"):
        read_sample(path, 0)
    with pytest.raises(FileNotFoundError, match="shards index"):
        open_store(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no \.tar"):
        index_shards(tmp_path / "empty", BrokenList())


def test_shards_of_others_are_read_once_they_are_indexed(
    tmp_path: Path, encode: Callable[..., bytes], tar_of: WriteTar
) -> None:
    for shard in range(2):
        files = {}
        for number in range(shard * 3, shard * 3 + 3):
            record = json.dumps({"caption": f"text {number}", "url": f"u{number}"}).encode()
            files[f"{number:09d}.jpg"] = encode(number, kind="JPEG")
            files[f"{number:09d}.txt"] = f"text {number}".encode()
            files[f"{number:09d}.json"] = b"{" if number == 5 else record
        tar_of(tmp_path / f"{shard:05d}.tar", files)
    broken = BrokenList()
    manifest = index_shards(tmp_path, broken)
    assert load_manifest(tmp_path) == manifest
    counts = DataSummary(num_images=6, num_captioned=5, caption_sources={"alt": 5})
    assert (manifest.summary, len(broken)) == (counts, 1)
    store = open_store(tmp_path)
    assert isinstance(store, ShardStore)
    assert store.shard_sizes.tolist() == [3, 3]
    assert store.name(1, 2) == "00001.tar row 2"
    sample = store.read(1, 1)
    assert (sample.key, sample.captions) == ("000000004", {"alt": "text 4"})
    assert sample.fields["url"] == "u4"
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2}))
    with pytest.raises(ValueError, match="format 2"):
        load_manifest(tmp_path)


def write_no_rows(path: Path) -> Path:
    """A Parquet file with a column and no row."""
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), path)
    return path


class StoppingSource(ImageFolder):
    """Stops in the middle of the third shard."""

    def items(self, start: int, stop: int) -> Iterator[tuple[str, ReadSample]]:
        """Yield two items of the third shard, then stop."""
        for number, item in enumerate(super().items(start, stop)):
            if start == 10 and number == 2:
                raise KeyboardInterrupt
            yield item


def files(folder: Path) -> dict[str, bytes]:
    """Everything in a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def build(image_folder: Path, out: Path) -> Build:
    """Make shards of the images as they are now."""

    def run(folder: Path = out, plan: ShardPlan = PLAN) -> Manifest:
        return build_shards(ImageFolder(image_folder), folder, plan, is_shown=False)

    return run


def test_a_data_set_holds_every_item_in_order(
    build: Build, out: Path, samples: list[Sample]
) -> None:
    assert [entry.summary.num_images for entry in build().shards] == [5, 5, 5, 5, 3]
    store = ShardStore(out)
    for number, sample in enumerate(samples):
        found = store.read(*divmod(number, 5))
        assert (found.image, found.captions) == (sample.image, sample.captions)
        assert (found.names, found.fields["license"]) == (sample.names, "CC0-1.0")


def test_a_stopped_build_resumes_to_the_same_files(
    build: Build, tmp_path: Path, image_folder: Path, out: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        build_shards(StoppingSource(image_folder), out, PLAN, is_shown=False)
    names = set(files(out))
    shards = {name for name in names if name.endswith(".tar")}
    assert shards == {"shard-000000.tar", "shard-000001.tar"}
    assert not [name for name in names if "tmp" in name or name == "manifest.json"]
    written = (out / "shard-000000.tar").stat().st_mtime_ns
    # A killed process cannot remove its temporary files.
    for name in (".shard-000002.tar.77.tmp", ".shard-000002.tar.offsets.npy.77.tmp"):
        (out / name).write_bytes(b"half")
    build()
    build(tmp_path / "whole")
    assert files(out) == files(tmp_path / "whole")
    assert (out / "shard-000000.tar").stat().st_mtime_ns == written


def test_broken_items_are_left_out_counted_and_listed(
    build: Build, out: Path, image_folder: Path
) -> None:
    for number in range(5):  # a whole shard
        (image_folder / f"a/{number:09d}.png").write_bytes(b"no image")
    (image_folder / "b/000000012.json").write_text("{")
    manifest = build()
    assert ShardStore(out).shard_sizes.tolist() == [0, 5, 4, 5, 3]
    assert manifest.num_skipped == load_manifest(out).num_skipped == 6
    records = [json.loads(path.read_text()) for path in out.glob("shard-*.json")]
    places = {item["place"]: item["reason"] for record in records for item in record["skipped"]}
    assert set(places) == {*(f"a/{i:09d}.png" for i in range(5)), "b/000000012.png"}
    assert "no JSON" in places["b/000000012.png"]


def test_a_folder_with_other_shards_is_left_as_it_is(
    build: Build, tmp_path: Path, image_folder: Path
) -> None:
    build()
    other = ShardPlan(kind="folder", shard_size=6, limits=replace(DEFAULT_LIMITS, max_bytes=10**6))
    with pytest.raises(ValueError, match="another limits, shard_size"):
        build(plan=other)
    (image_folder / "c.png").write_bytes((image_folder / "a/000000000.png").read_bytes())
    with pytest.raises(ValueError, match="another fingerprint, num_items"):
        build()
    (tmp_path / "mine.tar").touch()
    with pytest.raises(ValueError, match="another origin"):
        build(tmp_path)
    with pytest.raises(ValueError, match="shard_size"):
        ShardPlan(kind="folder", shard_size=0)
    nothing = ParquetItems(
        [write_no_rows(tmp_path / "no.parquet")], ParquetColumns(), root=tmp_path
    )
    with pytest.raises(ValueError, match="nothing to make"):
        build_shards(nothing, tmp_path / "none", PLAN, is_shown=False)
    assert not (tmp_path / "none").exists()


def test_damage_is_found_by_the_digests(build: Build, out: Path) -> None:
    build()
    assert find_damage(out) == []
    path = out / "shard-000001.tar"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    (out / "shard-000003.tar").unlink()
    assert find_damage(out) == [
        "shard-000001.tar is not the file that was written",
        "shard-000003.tar is missing",
    ]
