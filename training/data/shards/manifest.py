"""A data set of shards: its manifest, its index, and access to any sample by shard and row."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from model.files import atomic_write
from training.data.shards.sample import (
    BadSample,
    BrokenList,
    BrokenSample,
    DataSummary,
    Sample,
    summarize,
    total,
)
from training.data.shards.tar_shard import (
    find_offsets,
    read_sample,
    write_offsets,
)


class ImageStore(Protocol):
    """Random access to samples in shards. It is pickled into worker processes.

    Attributes:
        kind: In words.
    """

    kind: str

    @property
    def shard_sizes(self) -> NDArray[np.int64]:
        """Samples in each shard."""

    def read(self, shard: int, row: int) -> Sample:
        """Read a sample.

        Raises:
            BadSample: The sample exists, but is unusable.
            OSError: The storage failed; another attempt may succeed.
        """

    def name(self, shard: int, row: int) -> str:
        """Location of a sample, for the list of broken ones."""

    def summary(self) -> DataSummary:
        """Counts of the data set."""


MANIFEST_FILE = "manifest.json"
# A thousand photos of 100 kB are 100 MB: fast to rewrite after a stop, and large enough for any
# file system.
DEFAULT_SHARD_SIZE = 1000
_FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardEntry:
    """One shard.

    Attributes:
        name: Name of the file.
        num_bytes: Size of the file.
        sha256: Digest of the file.
        num_skipped: Items that were left out as broken.
        summary: Counts of its samples.
    """

    name: str
    num_bytes: int
    sha256: str
    num_skipped: int
    summary: DataSummary


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Origin of a data set, and its shards in order."""

    origin: Mapping[str, Any]
    shards: Sequence[ShardEntry]

    @property
    def summary(self) -> DataSummary:
        """Counts of all shards."""
        return total(entry.summary for entry in self.shards)

    @property
    def num_skipped(self) -> int:
        """Items left out as broken."""
        return sum(entry.num_skipped for entry in self.shards)


def make_entry(path: Path, *, summary: DataSummary, num_skipped: int) -> ShardEntry:
    """Describe a finished shard, with the digest of its file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return ShardEntry(
        name=path.name,
        num_bytes=path.stat().st_size,
        sha256=digest,
        num_skipped=num_skipped,
        summary=summary,
    )


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def save_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest as the last file: a folder with a manifest is complete."""
    content = {
        "format": _FORMAT,
        "num_skipped": manifest.num_skipped,
        "summary": asdict(manifest.summary),
        "origin": dict(manifest.origin),
        "shards": [asdict(entry) for entry in manifest.shards],
    }
    write_json(folder / MANIFEST_FILE, content)


def read_entry(content: Mapping[str, Any]) -> ShardEntry:
    """Read an entry as `asdict` wrote it."""
    return ShardEntry(**{**content, "summary": DataSummary(**content["summary"])})


def load_manifest(folder: Path) -> Manifest:
    """Read a manifest.

    Raises:
        FileNotFoundError: The folder has none.
        ValueError: It is of another format.
    """
    path = folder / MANIFEST_FILE
    if not path.exists():
        raise FileNotFoundError(
            f"{folder} has no {MANIFEST_FILE}: build it with `python -m training shards`, or, for "
            f"shards made elsewhere, run `python -m training shards index {folder}`"
        )
    content = json.loads(path.read_text(encoding="utf-8"))
    if content.get("format") != _FORMAT:
        raise ValueError(f"{path} is of format {content.get('format')}; {_FORMAT} is read")
    entries = [read_entry(entry) for entry in content["shards"]]
    return Manifest(origin=content["origin"], shards=entries)


def find_damage(folder: Path) -> list[str]:
    """Compare every shard's file with the manifest; returns a line for each that differs."""
    damage = []
    for entry in load_manifest(folder).shards:
        path = folder / entry.name
        if not path.exists():
            damage.append(f"{entry.name} is missing")
        elif make_entry(path, summary=entry.summary, num_skipped=0).sha256 != entry.sha256:
            damage.append(f"{entry.name} is not the file that was written")
    return damage


class ShardStore:
    """A folder of shards with its manifest, as a store of samples."""

    kind = "shards"

    def __init__(self, folder: Path) -> None:
        """Read the manifest.

        Raises:
            FileNotFoundError: The folder has none.
        """
        self._folder, self._manifest = folder, load_manifest(folder)

    @cached_property
    def shard_sizes(self) -> NDArray[np.int64]:
        """Samples in each shard."""
        sizes = [entry.summary.num_images for entry in self._manifest.shards]
        return np.asarray(sizes, np.int64)

    def name(self, shard: int, row: int) -> str:
        """The shard's file and the row in it."""
        return f"{self._manifest.shards[shard].name} row {row}"

    def read(self, shard: int, row: int) -> Sample:
        """Read a sample; raises as `ImageStore.read` does."""
        return read_sample(self._folder / self._manifest.shards[shard].name, row)

    def summary(self) -> DataSummary:
        """Counts from the manifest."""
        return self._manifest.summary


def index_shards(folder: Path, broken: BrokenList) -> Manifest:
    """Write offsets and a manifest for existing shards; reads every record, decodes no image.

    Args:
        folder: Holds the .tar files.
        broken: Receives the samples that cannot be read. They keep their rows; batches skip them.

    Raises:
        FileNotFoundError: No .tar file in the folder.
        ValueError: A file is not a complete tar file.
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
            summaries.append(summarize(read_sample(path, row)))
        except BadSample as error:
            broken.add([BrokenSample(place=f"{path.name} row {row}", reason=str(error))])
            summaries.append(DataSummary(num_images=1))
    return make_entry(path, summary=total(summaries), num_skipped=0)
