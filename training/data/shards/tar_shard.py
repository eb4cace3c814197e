"""A WebDataset shard: a tar file with a list of sample offsets for random access.

With the list, any sample can be read alone, and a training run resumes at its next sample.
"""

import io
import tarfile
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from webdataset.tariterators import tar_file_iterator
from webdataset.writer import TarWriter

from model.files import atomic_file, remove_temporaries
from training.data.shards.sample import BadSample, Sample, sample_from_members, split_name

_OFFSETS_SUFFIX = ".offsets.npy"


def offsets_path(shard: Path) -> Path:
    """Path of a shard's list of offsets."""
    return shard.with_name(shard.name + _OFFSETS_SUFFIX)


def write_shard(path: Path, samples: Iterable[Sample]) -> int:
    """Write samples as a tar file and its offsets, both atomically; returns their number.

    Only one process may write a shard at a time, because temporary files of killed processes are
    removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_temporaries(path)
    remove_temporaries(offsets_path(path))
    offsets = [0]
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        # Without times and owners the file depends on the samples alone.
        plain = {"user": "", "group": "", "mtime": 0, "format": "PAX_FORMAT"}
        with TarWriter(file, encoder=False, **plain) as archive:
            for sample in samples:
                archive.write(sample.as_webdataset())
                offsets.append(archive.tarstream.offset)
    write_offsets(path, np.asarray(offsets))
    return len(offsets) - 1


def write_offsets(shard: Path, offsets: NDArray[np.int64]) -> None:
    """Write the start of each sample and the end of the last one, int64 [samples + 1]."""
    with atomic_file(offsets_path(shard)) as temporary, temporary.open("wb") as file:
        np.save(file, offsets.astype(np.int64))


def find_offsets(path: Path) -> NDArray[np.int64]:
    """Find the start of each sample of a shard from the tar headers alone.

    Raises:
        ValueError: Not a tar file, or one that ends early.
    """
    offsets, key, end = [], None, 0
    try:
        with tarfile.open(path, mode="r:") as archive:
            for entry in archive:
                if entry.isfile():
                    new_key = split_name(entry.name)[0]
                    if new_key != key:
                        offsets.append(entry.offset)
                    key = new_key
                end = archive.offset
    except tarfile.TarError as error:
        raise ValueError(f"{path} is no whole tar file: {error}") from error
    return np.asarray([*offsets, end], np.int64)


@lru_cache(maxsize=256)
def load_offsets(shard: Path) -> NDArray[np.int64]:
    """Load a shard's offsets; those of a few hundred shards are cached.

    Raises:
        FileNotFoundError: It has none.
    """
    path = offsets_path(shard)
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing: run `python -m training shards index {shard.parent}`"
        )
    offsets: NDArray[np.int64] = np.load(path)
    return offsets


def read_sample(shard: Path, row: int) -> Sample:
    """Read one sample of a shard.

    Raises:
        BadSample: Its files cannot be understood.
        OSError: The storage failed.
    """
    offsets = load_offsets(shard)
    start, stop = int(offsets[row]), int(offsets[row + 1])
    with shard.open("rb") as file:
        file.seek(start)
        content = file.read(stop - start)
    try:
        entries = tar_file_iterator(io.BytesIO(content))
        members = {entry["fname"]: entry["data"] for entry in entries}
    except tarfile.TarError as error:
        raise BadSample(f"its part of the tar file is broken: {error}") from error
    return sample_from_members(members)
