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
from training.data.shards.tar_shard import find_offsets, read_sample, write_offsets

MANIFEST_FILE = "manifest.json"
# A thousand photos of 100 kB are 100 MB: fast to rewrite after a stop, and large enough for any
# file system.
DEFAULT_SHARD_SIZE = 1000
_FORMAT = 2


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


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardEntry:
    """One shard: its file's name, the digest of the file, counts of its samples."""

    name: str
    sha256: str
    summary: DataSummary


def claim_folder(file: Path, settings: Mapping[str, Any]) -> None:
    """Note what a folder is filled with, or compare it with what an earlier run noted.

    Args:
        file: The note, in the folder.
        settings: As JSON types.

    Raises:
        ValueError: The folder was begun with others.
    """
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(file, json.dumps(settings, indent=1, ensure_ascii=False) + "\n")
    begun = json.loads(file.read_text(encoding="utf-8"))
    changed = sorted(name for name in {*begun, *settings} if begun.get(name) != settings.get(name))
    if changed:
        raise ValueError(
            f"{file.parent} was begun with another {', '.join(changed)}: use what {file} says, or "
            "name another folder"
        )


def load_manifest(folder: Path) -> list[ShardEntry]:
    """Read a manifest: the shards in order.

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
        raise ValueError(
            f"{path} is of format {content.get('format')}, and {_FORMAT} is read: run "
            f"`python -m training shards index {folder}` again"
        )
    return [
        ShardEntry(
            name=entry["name"], sha256=entry["sha256"], summary=DataSummary(**entry["summary"])
        )
        for entry in content["shards"]
    ]


class ShardStore:
    """A folder of shards with its manifest, as a store of samples."""

    kind = "shards"

    def __init__(self, folder: Path) -> None:
        """Read the manifest.

        Raises:
            FileNotFoundError: The folder has none.
        """
        self._folder, self._shards = folder, load_manifest(folder)

    @cached_property
    def shard_sizes(self) -> NDArray[np.int64]:
        """Samples in each shard."""
        return np.asarray([entry.summary.num_images for entry in self._shards], np.int64)

    def name(self, shard: int, row: int) -> str:
        """The shard's file and the row in it."""
        return f"{self._shards[shard].name} row {row}"

    def read(self, shard: int, row: int) -> Sample:
        """Read a sample; raises as `ImageStore.read` does."""
        return read_sample(self._folder / self._shards[shard].name, row)

    def summary(self) -> DataSummary:
        """Counts from the manifest."""
        return total(entry.summary for entry in self._shards)


def index_shards(folder: Path, broken: BrokenList) -> Sequence[ShardEntry]:
    """Write the offsets of every shard, and then a manifest; reads records, decodes no image.

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
    shards = [_index_shard(path, broken) for path in paths]
    content = {
        "format": _FORMAT,
        "summary": asdict(total(entry.summary for entry in shards)),
        "shards": [asdict(entry) for entry in shards],
    }
    text = json.dumps(content, indent=1, ensure_ascii=False)
    atomic_write(folder / MANIFEST_FILE, text + "\n")
    return shards


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
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return ShardEntry(name=path.name, sha256=digest, summary=total(summaries))
