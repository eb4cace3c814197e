"""Shards: whole files only, resumable, read sample by sample, of ours and of others."""

import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from training.data.shards.sample import BadSample, BrokenList, DataSummary, Sample
from training.data.shards.store import (
    SKIPPED_FILE,
    ImageFolder,
    ShardStore,
    build_shards,
    index_shards,
    open_store,
)
from training.data.shards.tar_shard import (
    load_offsets,
    offsets_path,
    read_sample,
    write_offsets,
    write_shard,
)

WriteTar = Callable[..., None]


@pytest.fixture
def path(tmp_path: Path, samples: list[Sample]) -> Path:
    """A shard of all samples."""
    path = tmp_path / "shard-000000.tar"
    write_shard(path, samples)
    return path


def test_any_sample_is_read_alone_and_a_damaged_part_breaks_its_own_only(
    path: Path, samples: list[Sample]
) -> None:
    assert [read_sample(path, row) for row in reversed(range(len(samples)))] == samples[::-1]
    start = int(load_offsets(path)[3])
    content = bytearray(path.read_bytes())
    content[start : start + 512] = b"\xff" * 512
    path.write_bytes(content)
    with pytest.raises(BadSample):
        read_sample(path, 3)
    assert read_sample(path, 4) == samples[4]


@pytest.mark.parametrize("layout", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_names_and_orders_of_other_writers_are_read(
    tmp_path: Path, tar_of: WriteTar, layout: int
) -> None:
    """The image before its record is what earlier versions wrote."""
    long = "x" * (90 if layout == tarfile.USTAR_FORMAT else 150)
    path, name = tmp_path / "foreign.tar", f"d\u00e9j\u00e0/{long}"
    files = {f"{name}/": b"", f"{name}.png": b"image", f"{name}.txt": b"a caption"}
    tar_of(path, {**files, "2.png": b"second", "2.json": b'{"captions": {}}'}, layout=layout)
    assert write_offsets(path) == 2
    sample = read_sample(path, 0)
    assert (sample.key, sample.image, sample.captions) == (name, b"image", {"alt": "a caption"})
    assert read_sample(path, 1).image == b"second"


def test_what_is_missing_is_an_error_with_advice(path: Path, tmp_path: Path) -> None:
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(ValueError, match="no whole tar file"):
        write_offsets(path)
    offsets_path(path).unlink()
    for call in (lambda: read_sample(path, 0), lambda: open_store(tmp_path)):
        with pytest.raises(FileNotFoundError, match="shards index"):
            call()
    with pytest.raises(FileNotFoundError, match=r"no \.tar"):
        index_shards(tmp_path / "empty", BrokenList())


def test_shards_of_others_are_read_once_they_are_indexed(
    tmp_path: Path, encode: Callable[..., bytes], tar_of: WriteTar
) -> None:
    for shard in range(2):
        files = {}
        for number in range(shard * 3, shard * 3 + 3):
            record = json.dumps({"caption": f"text {number}", "url": f"u{number}"}).encode()
            if number != 5:
                files[f"{number:09d}.jpg"] = encode(number, kind="JPEG")
            files[f"{number:09d}.txt"] = f"text {number}".encode()
            files[f"{number:09d}.json"] = record
        tar_of(tmp_path / f"{shard:05d}.tar", files)
    broken = BrokenList()
    index_shards(tmp_path, broken)
    store = open_store(tmp_path)
    assert isinstance(store, ShardStore)
    counts = DataSummary(num_images=6, num_captioned=5, caption_sources={"alt": 5})
    assert (store.summary, len(broken)) == (counts, 1)
    assert store.shard_sizes.tolist() == [3, 3]
    assert store.name(1, 2) == "00001.tar row 2"
    sample = store.read(1, 1)
    assert (sample.captions, sample.fields["url"]) == ({"alt": "text 4"}, "u4")
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 1}))
    with pytest.raises(ValueError, match=r"format 1, and 2 is read: run .*shards index"):
        open_store(tmp_path)


class StoppingSource(ImageFolder):
    """Stops in the middle of the third shard."""

    def read(self, shard: int, row: int) -> Sample:
        """Read two images of the third shard, then stop."""
        if (shard, row) == (0, 12):
            raise KeyboardInterrupt
        return super().read(shard, row)


def files(folder: Path) -> dict[str, bytes]:
    """Everything in a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_stopped_build_resumes_to_the_same_files(image_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        build_shards(StoppingSource(image_folder), out, 5)
    names = set(files(out))
    shards = {name for name in names if name.endswith(".tar")}
    assert shards == {"shard-000000.tar", "shard-000001.tar"}
    assert not [name for name in names if "tmp" in name or name == "manifest.json"]
    written = (out / "shard-000000.tar").stat().st_mtime_ns
    # A killed process cannot remove its temporary files.
    for name in (".shard-000002.tar.77.tmp", ".shard-000002.tar.offsets.npy.77.tmp"):
        (out / name).write_bytes(b"half")
    for folder in (out, tmp_path / "whole"):
        build_shards(ImageFolder(image_folder), folder, 5)
    assert files(out) == files(tmp_path / "whole")
    assert (out / "shard-000000.tar").stat().st_mtime_ns == written


def test_broken_items_are_left_out_and_listed(image_folder: Path, tmp_path: Path) -> None:
    for number in range(5):  # a whole shard
        (image_folder / f"a/{number:09d}.png").write_bytes(b"no image")
    assert len(build_shards(ImageFolder(image_folder), tmp_path / "out", 5)) == 5
    assert ShardStore(tmp_path / "out").shard_sizes.tolist() == [0, 5, 5, 5, 3]
    lines = (tmp_path / "out" / SKIPPED_FILE).read_text().splitlines()
    places = {item["place"] for item in map(json.loads, lines)}
    assert places == {f"a/{i:09d}.png" for i in range(5)}


def test_a_folder_with_other_shards_is_left_as_it_is(image_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build_shards(ImageFolder(image_folder), out, 5)
    with pytest.raises(ValueError, match="another shard_size"):
        build_shards(ImageFolder(image_folder), out, 6)
    (image_folder / "c.png").write_bytes((image_folder / "a/000000000.png").read_bytes())
    with pytest.raises(ValueError, match="another fingerprint, items"):
        build_shards(ImageFolder(image_folder), out, 5)
    (tmp_path / "mine.tar").touch()
    with pytest.raises(ValueError, match="another origin"):
        build_shards(ImageFolder(image_folder), tmp_path)
