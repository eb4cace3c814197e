"""Makes WebDataset shards that were written elsewhere readable from the middle."""

from pathlib import Path

from training.data.shards.broken import BrokenList, BrokenSample
from training.data.shards.manifest import Manifest, ShardEntry, make_entry, save_manifest
from training.data.shards.sample import BadSample
from training.data.shards.summary import DataSummary, summarize, total
from training.data.shards.tar_shard import find_offsets, read_sample, write_offsets


def index_shards(folder: Path, broken: BrokenList) -> Manifest:
    """Write offsets and a manifest beside the shards; reads every record, decodes no image.

    Args:
        folder: Holds the .tar files.
        broken: Takes the samples that cannot be understood. They keep their rows; batches pass
            them over.

    Raises:
        FileNotFoundError: No .tar file in the folder.
        ValueError: A file that is no whole tar file.
    """
    paths = sorted(folder.glob("*.tar"))
    if not paths:
        raise FileNotFoundError(f"{folder} holds no .tar file")
    manifest = Manifest(
        origin={"kind": "index"}, shards=[_index_shard(path, broken) for path in paths]
    )
    save_manifest(folder, manifest)
    return manifest


def _index_shard(path: Path, broken: BrokenList) -> ShardEntry:
    offsets = find_offsets(path)
    write_offsets(path, offsets)
    summaries = []
    for row in range(len(offsets) - 1):
        try:
            summaries.append(summarize([read_sample(path, row)]))
        except BadSample as error:
            broken.add([BrokenSample(place=f"{path.name} row {row}", reason=str(error))])
            summaries.append(DataSummary(num_images=1))
    return make_entry(path, summary=total(summaries), num_skipped=0)
