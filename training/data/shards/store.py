"""Random access to images with captions: a folder of plain images, or of shards with a manifest.

Beside an image a .txt file holds alt text, a .json file a record with captions by source. The same
images in shards of the same size give the same batches.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.files import atomic_write
from training.data.shards.sample import (
    IMAGE_SUFFIXES,
    BadSample,
    BrokenList,
    DataSummary,
    Sample,
    decode_tensor,
    sample_from_members,
    summarize,
)
from training.data.shards.tar_shard import (
    offsets_path,
    read_rows,
    read_sample,
    write_offsets,
    write_shard,
)

MANIFEST_FILE = "manifest.json"
SKIPPED_FILE = "skipped.jsonl"
_ORIGIN_FILE = "origin.json"
# A thousand photos of 100 kB are 100 MB: fast to rewrite after a stop, and large enough for any
# file system.
DEFAULT_SHARD_SIZE = 1000
_FORMAT = 2


class ShardStore:
    """A folder of shards with its manifest. It is pickled into worker processes."""

    kind = "shards"

    def __init__(self, folder: Path) -> None:
        """Read the manifest.

        Raises:
            FileNotFoundError: The folder has none.
            ValueError: It is of another format.
        """
        path = folder / MANIFEST_FILE
        if not path.exists():
            raise FileNotFoundError(
                f"{folder} has no {MANIFEST_FILE}: build it with `python -m training shards`, or, "
                f"for shards made elsewhere, run `python -m training shards index {folder}`"
            )
        text = path.read_bytes()
        content = json.loads(text)
        if content.get("format") != _FORMAT:
            raise ValueError(
                f"{path} is of format {content.get('format')}, and {_FORMAT} is read: run "
                f"`python -m training shards index {folder}` again"
            )
        self.shards = [folder / entry["name"] for entry in content["shards"]]
        sizes = [entry["summary"]["num_images"] for entry in content["shards"]]
        self.shard_sizes = np.asarray(sizes, np.int64)
        self.summary = DataSummary(**content["summary"])
        self.digest = hashlib.sha256(text).hexdigest()

    def name(self, shard: int, row: int) -> str:
        """Location of a sample, for the list of broken ones."""
        return f"{self.shards[shard].name} row {row}"

    def read(self, shard: int, row: int) -> Sample:
        """Read a sample.

        Raises:
            BadSample: The sample exists, but is unusable.
            OSError: The storage failed; another attempt may succeed.
        """
        return read_sample(self.shards[shard], row)


class ImageFolder:
    """Images under a folder and its sub-folders, in the order of their names; see `ShardStore`."""

    kind = "plain images"

    def __init__(self, path: Path, *, shard_size: int = DEFAULT_SHARD_SIZE) -> None:
        """List the images; ignores files and folders whose name starts with a dot.

        Raises:
            FileNotFoundError: No such folder, or no image in it.
        """
        self._path, self._shard_size = path, shard_size
        self.names = sorted(_image_names(path))
        if not self.names:
            raise FileNotFoundError(
                f"{path} holds no image ({', '.join(IMAGE_SUFFIXES)}); name another folder"
            )

    @cached_property
    def shard_sizes(self) -> NDArray[np.int64]:
        """The images, divided into shards of equal size."""
        starts = np.arange(0, len(self.names), self._shard_size)
        return np.minimum(self._shard_size, len(self.names) - starts)

    @cached_property
    def summary(self) -> DataSummary:
        """Counts; reads captions but no images."""
        return summarize(
            sample_from_members({"image.png": b"", **self._captions(name)}) for name in self.names
        )

    @cached_property
    def digest(self) -> str:
        """Of the list of images and their sizes."""
        digest = hashlib.sha256()
        for name in self.names:
            digest.update(f"{name}\0{(self._path / name).stat().st_size}\n".encode())
        return digest.hexdigest()

    def name(self, shard: int, row: int) -> str:
        """The image's path in the folder."""
        return self.names[shard * self._shard_size + row]

    def read(self, shard: int, row: int) -> Sample:
        """Read an image and its captions; raises as `ShardStore.read` does."""
        item = shard * self._shard_size + row
        name = self.names[item]
        path = self._path / name
        members = {f"image{path.suffix}": path.read_bytes(), **self._captions(name)}
        sample = sample_from_members(members)
        return replace(sample, key=f"{item:09d}", fields={**sample.fields, "file": name})

    def _captions(self, name: str) -> dict[str, bytes]:
        """An image's caption files, renamed: its stem may hold dots, a shard's names may not."""
        path = self._path / name
        files = (path.with_suffix(suffix) for suffix in (".json", ".txt"))
        return {f"image{file.suffix}": file.read_bytes() for file in files if file.exists()}


ImageStore = ShardStore | ImageFolder


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
    """A line about the content of a folder of either kind."""
    store = open_store(folder)
    return f"{folder} holds {store.kind}: {store.summary}"


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


def index_shards(folder: Path, broken: BrokenList) -> None:
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
    shards = []
    for path in paths:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        summary = {"num_images": write_offsets(path)}
        shards.append({"name": path.name, "sha256": digest, "summary": summary})

    def rows() -> Iterator[Sample | BadSample]:
        for path in paths:
            for row, sample in enumerate(read_rows(path)):
                if isinstance(sample, BadSample):
                    broken.add(f"{path.name} row {row}", str(sample))
                yield sample

    content = {"format": _FORMAT, "summary": asdict(summarize(rows())), "shards": shards}
    text = json.dumps(content, indent=1, ensure_ascii=False)
    atomic_write(folder / MANIFEST_FILE, text + "\n")


def build_shards(
    source: ImageFolder, folder: Path, shard_size: int = DEFAULT_SHARD_SIZE
) -> BrokenList:
    """Write the missing shards, then the manifest; returns the images that are left out.

    Shard n starts at image n * shard_size, so a stopped build goes on with the next shard. Broken
    images are listed beside the shards.

    Args:
        source: The images.
        folder: Output folder.
        shard_size: Images per shard.

    Raises:
        ValueError: The folder was begun with other images or another size.
    """
    origin, num_images = folder / _ORIGIN_FILE, len(source.names)
    if not origin.exists() and ((folder / MANIFEST_FILE).exists() or any(folder.glob("*.tar"))):
        raise ValueError(f"{folder} holds shards of another origin: name another folder")
    facts = {"shard_size": shard_size, "items": num_images, "fingerprint": source.digest}
    claim_folder(origin, facts)
    skipped = BrokenList(folder / SKIPPED_FILE)
    for number, start in enumerate(range(0, num_images, shard_size)):
        path = folder / f"shard-{number:06d}.tar"
        if not offsets_path(path).exists():
            stop = min(num_images, start + shard_size)
            write_shard(path, _good_samples(source, range(start, stop), skipped))
            print(f"{path}: {stop:,} of {num_images:,} images", flush=True)
    index_shards(folder, skipped)
    return skipped


def _good_samples(source: ImageFolder, items: range, skipped: BrokenList) -> Iterator[Sample]:
    for item in items:
        try:
            sample = source.read(0, item)
            decode_tensor(sample.image)
        except BadSample as error:
            skipped.add(source.names[item], str(error))
        else:
            yield sample
