"""Builds a data set of shards from a folder of images; resumable.

Shard n starts at item n * shard_size, so that a finished shard never has to be rebuilt. The
manifest is written after all shards. Broken items are left out, and listed beside the shards.
"""

from collections.abc import Iterator
from pathlib import Path

from training.data.shards.decoding import decode_tensor
from training.data.shards.image_folder import ImageFolder
from training.data.shards.manifest import (
    DEFAULT_SHARD_SIZE,
    MANIFEST_FILE,
    claim_folder,
    index_shards,
)
from training.data.shards.sample import BadSample, BrokenList, BrokenSample, ReadSample, Sample
from training.data.shards.tar_shard import offsets_path, write_shard

_ORIGIN_FILE = "origin.json"
SKIPPED_FILE = "skipped.jsonl"


def build_shards(
    source: ImageFolder, folder: Path, shard_size: int = DEFAULT_SHARD_SIZE
) -> BrokenList:
    """Write the missing shards, then the manifest; returns the items that are left out.

    Args:
        source: The images.
        folder: Output folder.
        shard_size: Items per shard.

    Raises:
        ValueError: The folder was begun with other items or another size.
    """
    if shard_size < 1:
        raise ValueError("a shard's size must be at least 1")
    origin = folder / _ORIGIN_FILE
    if not origin.exists() and ((folder / MANIFEST_FILE).exists() or any(folder.glob("*.tar"))):
        raise ValueError(f"{folder} holds shards of another origin: name another folder")
    facts = {"shard_size": shard_size, "items": len(source), "fingerprint": source.fingerprint()}
    claim_folder(origin, facts)
    skipped = BrokenList(folder / SKIPPED_FILE)
    for number, start in enumerate(range(0, len(source), shard_size)):
        path = folder / f"shard-{number:06d}.tar"
        if not offsets_path(path).exists():  # written after the shard
            stop = min(len(source), start + shard_size)
            write_shard(path, _good_samples(source.items(start, stop), skipped))
            print(f"{path}: {stop:,} of {len(source):,} items", flush=True)
    index_shards(folder, skipped)
    return skipped


def _good_samples(items: Iterator[tuple[str, ReadSample]], skipped: BrokenList) -> Iterator[Sample]:
    for place, read in items:
        try:
            sample = read()
            decode_tensor(sample.image)
        except BadSample as error:
            skipped.add([BrokenSample(place=place, reason=str(error))])
            continue
        yield sample
