"""Shards: any sample is read alone, equal samples give equal bytes, other readers work too."""

import gc
import tarfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from training.data.shards.decoding import DEFAULT_LIMITS, decode_tensor
from training.data.shards.sample import BadSample, Sample
from training.data.shards.tar_shard import (
    find_offsets,
    load_offsets,
    offsets_path,
    read_sample,
    write_offsets,
    write_shard,
)


@pytest.fixture
def path(tmp_path: Path, samples: list[Sample]) -> Path:
    """A shard of all samples."""
    path = tmp_path / "shard-000000.tar"
    assert write_shard(path, samples) == len(samples)
    return path


def test_any_sample_is_read_alone(path: Path, samples: list[Sample]) -> None:
    for row in reversed(range(len(samples))):
        assert read_sample(path, row) == samples[row]


def test_a_shard_depends_on_its_samples_alone(path: Path, samples: list[Sample]) -> None:
    write_shard(path.with_name("two.tar"), samples)
    assert path.read_bytes() == path.with_name("two.tar").read_bytes()
    assert np.array_equal(find_offsets(path), load_offsets(path))


@pytest.mark.parametrize("layout", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names_are_read(
    tmp_path: Path, tar_of: Callable[..., None], layout: int
) -> None:
    path, name = tmp_path / "foreign.tar", "d\u00e9j\u00e0/" + "x" * 150
    files = {f"{name}/": b"", f"{name}.jpg": b"image", f"{name}.txt": b"a caption"}
    tar_of(path, files, layout=layout)
    write_offsets(path, find_offsets(path))
    sample = read_sample(path, 0)
    assert (sample.key, sample.image, sample.captions) == (name, b"image", {"alt": "a caption"})


def test_the_webdataset_package_reads_our_shards(tmp_path: Path, samples: list[Sample]) -> None:
    webdataset = pytest.importorskip("webdataset")
    for number, part in enumerate((samples[:12], samples[12:])):
        write_shard(tmp_path / f"shard-{number:06d}.tar", part)
    shards = str(tmp_path / "shard-{000000..000001}.tar")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the package leaves files open
        pipeline = webdataset.WebDataset(shards, shardshuffle=False).decode("rgb8")
        found = list(pipeline.to_tuple("__key__", "png", "json"))
        del pipeline
        gc.collect()
    assert [key for key, _, _ in found] == [sample.key for sample in samples]
    for (_, pixels_HW3, record), sample in zip(found, samples, strict=True):
        ours_3HW = decode_tensor(sample.image, DEFAULT_LIMITS).numpy()
        assert np.array_equal(pixels_HW3, ours_3HW.transpose(1, 2, 0))
        assert record["captions"] == sample.captions
        assert record["names"] == list(sample.names)


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


def test_a_shard_without_offsets_is_an_error_with_advice(path: Path) -> None:
    offsets_path(path).unlink()
    with pytest.raises(FileNotFoundError, match="shards index"):
        read_sample(path, 0)
