"""A WebDataset shard: a tar file with a list of sample offsets for random access.

With the list, any sample can be read alone, and a training run resumes at its next sample. Written
and read by the standard library; any WebDataset reader reads these.
"""

import io
import tarfile
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.files import atomic_file, remove_temporaries
from training.data.shards.sample import BadSample, Sample, sample_from_members, split_name

_OFFSETS_SUFFIX = ".offsets.npy"


def offsets_path(shard: Path) -> Path:
    """Path of a shard's list of offsets."""
    return shard.with_name(shard.name + _OFFSETS_SUFFIX)


def write_shard(path: Path, samples: Iterable[Sample]) -> int:
    """Write samples as a tar file and its offsets, both atomically; returns their number.

    The file depends on the samples alone: it has no times and no owners. Only one process may write
    a shard at a time, because temporary files of killed processes are removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for file in (path, offsets_path(path)):
        remove_temporaries(file)
    offsets = [0]
    with (
        atomic_file(path) as temporary,
        tarfile.open(temporary, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for sample in samples:
            for name, content in sample.members().items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
            offsets.append(archive.offset)
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
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
            members = {
                entry.name: extracted.read()
                for entry in archive
                if entry.isfile() and (extracted := archive.extractfile(entry)) is not None
            }
    except tarfile.TarError as error:
        raise BadSample(f"its part of the tar file is broken: {error}") from error
    return sample_from_members(members)
