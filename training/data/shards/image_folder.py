"""A folder of plain images as a data set, and opening a folder of either kind.

A caption file has its image's name: a .txt holds alt text, a .json a record with captions by
source. The same images in shards of the same size give the same batches.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.data.shards.manifest import (
    DEFAULT_SHARD_SIZE,
    MANIFEST_FILE,
    ImageStore,
    ShardStore,
)
from training.data.shards.sample import (
    IMAGE_SUFFIXES,
    BadSample,
    DataSummary,
    ReadSample,
    Sample,
    sample_from_members,
    summarize,
    total,
)


class ImageFolder:
    """Images under a folder and its sub-folders, in the order of their names."""

    kind = "plain images"

    def __init__(self, path: Path, *, shard_size: int = DEFAULT_SHARD_SIZE) -> None:
        """List the images; ignores files and folders whose name starts with a dot.

        Raises:
            FileNotFoundError: No such folder, or no image in it.
        """
        self._path, self._shard_size = path, shard_size
        self._names = sorted(_image_names(path))
        if not self._names:
            raise FileNotFoundError(
                f"{path} holds no image ({', '.join(IMAGE_SUFFIXES)}); name another folder"
            )

    def __len__(self) -> int:
        return len(self._names)

    @cached_property
    def shard_sizes(self) -> NDArray[np.int64]:
        """The images, divided into shards of equal size."""
        starts = np.arange(0, len(self._names), self._shard_size)
        return np.minimum(self._shard_size, len(self._names) - starts)

    def name(self, shard: int, row: int) -> str:
        """The image's path in the folder."""
        return self._names[shard * self._shard_size + row]

    def read(self, shard: int, row: int) -> Sample:
        """Read an image and its captions; raises as `ImageStore.read` does."""
        item = shard * self._shard_size + row
        name = self._names[item]
        path = self._path / name
        members = {f"image{path.suffix}": path.read_bytes(), **self._caption_files(name)}
        sample = sample_from_members(members)
        return replace(sample, key=f"{item:09d}", fields={**sample.fields, "file": name})

    def items(self, start: int, stop: int) -> Iterator[tuple[str, ReadSample]]:
        """Images for new shards: the location of each, and what reads its sample."""
        for item in range(start, stop):
            yield self._names[item], partial(self.read, *divmod(item, self._shard_size))

    def fingerprint(self) -> str:
        """Changes with the list of images and their sizes."""
        digest = hashlib.sha256()
        for name in self._names:
            digest.update(f"{name}\0{(self._path / name).stat().st_size}\n".encode())
        return digest.hexdigest()

    def summary(self) -> DataSummary:
        """Count images and captions; reads captions but no images."""
        return total(self._caption_counts())

    def _caption_counts(self) -> Iterator[DataSummary]:
        for name in self._names:
            members = {"image.png": b"", **self._caption_files(name)}
            try:
                yield summarize(sample_from_members(members))
            except BadSample:
                yield DataSummary(num_images=1)

    def _caption_files(self, name: str) -> dict[str, bytes]:
        """An image's caption files, renamed: its stem may hold dots, a shard's names may not."""
        path = self._path / name
        files = (path.with_suffix(suffix) for suffix in (".json", ".txt"))
        return {f"image{file.suffix}": file.read_bytes() for file in files if file.exists()}


def _image_names(folder: Path) -> Iterator[str]:
    for path, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES:
                yield (Path(path) / name).relative_to(folder).as_posix()


def open_store(folder: Path) -> ImageStore:
    """Open a folder of shards, or else of plain images.

    Raises:
        FileNotFoundError: It holds neither; the message says what to do about it.
    """
    if (folder / MANIFEST_FILE).exists() or any(folder.glob("*.tar")):
        return ShardStore(folder)
    return ImageFolder(folder)


def describe_folder(folder: Path) -> str:
    """A line about the content of a folder.

    Raises:
        FileNotFoundError: It holds neither shards nor images.
    """
    store = open_store(folder)
    return f"{folder} holds {store.kind}: {store.summary()}"
