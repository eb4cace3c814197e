"""Reads the shards of a captioning job from their beginning, without needing an index.

A training run reads shards at any sample; a job goes through them once, and also takes shards
that were made elsewhere.
"""

import tarfile
from collections.abc import Container, Iterator
from itertools import groupby
from pathlib import Path

from training.data.shards.sample import BadSample, Sample, sample_from_members, split_name


def shard_paths(shards: Path) -> list[Path]:
    """List the shards of a folder in order, or the one shard that was named.

    Raises:
        FileNotFoundError: There is none.
    """
    found = [shards] if shards.is_file() else sorted(shards.glob("*.tar"))
    if not found:
        raise FileNotFoundError(f"no shards in {shards}: name a folder of .tar files, or one file")
    return found


def read_shard(path: Path) -> Iterator[tuple[str, Sample | BadSample]]:
    """Read a shard's samples by key, one after another in its order.

    Yields:
        Each key with its sample, or with what is wrong with it.

    Raises:
        ValueError: The file is damaged, or a key comes twice.
    """
    seen: set[str] = set()
    try:
        for key, entries in groupby(_entries(path), key=lambda entry: split_name(entry[0])[0]):
            if key in seen:
                raise ValueError(f"{path}: the key {key} comes twice; keys name samples")
            seen.add(key)
            try:
                yield key, sample_from_members(dict(entries))
            except BadSample as error:
                yield key, error
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{path} is no tar file, or a damaged one: {error}") from error


def lacking(path: Path, source: str, settled: Container[str]) -> Iterator[Sample]:
    """Read the samples that have no caption of a source, but for those whose key is settled."""
    for key, sample in read_shard(path):
        if isinstance(sample, BadSample) or key in settled:
            continue
        if source not in sample.captions:
            yield sample


def _entries(path: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(path, "r:") as tar:
        for entry in tar:
            content = tar.extractfile(entry) if entry.isfile() else None
            if content is not None:
                yield entry.name, content.read()
