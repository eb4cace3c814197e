"""A WebDataset shard: a tar file with a list of sample offsets for random access.

With the list, any sample can be read alone, and a training run resumes at its next sample.
"""

import io
import tarfile
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from webdataset.tariterators import tar_file_iterator
from webdataset.writer import TarWriter

from model.files import atomic_file, remove_temporaries
from training.data.shards.sample import BadSample, Sample, sample_from_members, split_name


def offsets_path(shard: Path) -> Path:
    """Path of a shard's list of offsets, which is written after the shard."""
    return shard.with_name(shard.name + ".offsets.npy")


def write_shard(path: Path, samples: Iterable[Sample]) -> None:
    """Write samples as a tar file and its offsets, both atomically.

    Only one process may write a shard at a time, because temporary files of killed processes are
    removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_temporaries(path)
    remove_temporaries(offsets_path(path))
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        # Without times and owners the file depends on the samples alone.
        plain = {"user": "", "group": "", "mtime": 0, "format": "PAX_FORMAT"}
        with TarWriter(file, encoder=False, **plain) as archive:
            for sample in samples:
                archive.write(sample.as_webdataset())
    write_offsets(path)


def write_offsets(path: Path) -> int:
    """Find the start of each sample from the tar headers, and write them and the end of the last.

    Returns:
        The number of samples.

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
    with atomic_file(offsets_path(path)) as temporary, temporary.open("wb") as file:
        np.save(file, np.asarray([*offsets, end], np.int64))
    return len(offsets)


@lru_cache(maxsize=256)
def load_offsets(shard: Path) -> NDArray[np.int64]:
    """The start of each sample and the end of the last; those of some shards are cached.

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
    start, stop = (int(offset) for offset in load_offsets(shard)[row : row + 2])
    with shard.open("rb") as file:
        file.seek(start)
        content = file.read(stop - start)
    try:
        entries = tar_file_iterator(io.BytesIO(content))
        members = {entry["fname"]: entry["data"] for entry in entries}
    except tarfile.TarError as error:
        raise BadSample(f"its part of the tar file is broken: {error}") from error
    return sample_from_members(members)


def read_rows(shard: Path) -> Iterator[Sample | BadSample]:
    """A shard's samples in order; for a broken one the reason."""
    for row in range(len(load_offsets(shard)) - 1):
        try:
            yield read_sample(shard, row)
        except BadSample as error:
            yield error
