"""`python -m training shards folder|index|describe`: build, index, describe WebDataset shards."""

from pathlib import Path
from typing import Literal

from pydantic import PositiveInt
from pydantic.dataclasses import dataclass

from training.data.shards.sample import BrokenList
from training.data.shards.store import (
    DEFAULT_SHARD_SIZE,
    SKIPPED_FILE,
    ImageFolder,
    build_shards,
    describe_folder,
    index_shards,
)
from training.options import argument, option


@dataclass(frozen=True, kw_only=True)
class Options:
    """Of all three."""

    kind: Literal["folder", "index", "describe"] = argument(
        "build from images with optional .txt or .json files, index existing shards for random "
        "access, or describe a folder of shards or images"
    )
    folder: Path = argument("of images or of shards")
    output: Path | None = option("folder of the new shards", None)
    shard_size: PositiveInt | None = option(
        f"images of a new shard (default {DEFAULT_SHARD_SIZE})", None
    )


def run(options: Options) -> None:
    """Build, index or describe.

    Raises:
        ValueError: --output is missing, or an option is given where no shard is written.
    """
    if (options.kind == "folder") != (options.output is not None):
        raise ValueError("--output is the folder that `shards folder` writes to, and it needs one")
    if options.output is None and options.shard_size is not None:
        raise ValueError("--shard-size is an option of `shards folder` only")
    if options.output is not None:
        _build(options.folder, options.output, options.shard_size or DEFAULT_SHARD_SIZE)
    elif options.kind == "index":
        broken = BrokenList()
        index_shards(options.folder, broken)
        if len(broken):
            print(f"{len(broken)} samples are broken; batches will skip them: {broken.reasons()}")
    print(describe_folder(options.output or options.folder))


def _build(folder: Path, output: Path, shard_size: int) -> None:
    images = ImageFolder(folder)
    # Bad captions are counted here, because the shards do not have them any more.
    print(f"{folder} holds {images.kind}: {images.summary}")
    skipped = build_shards(images, output, shard_size)
    if len(skipped):
        print(f"{len(skipped)} broken samples are left out: {skipped.reasons()}")
        print(f"{output / SKIPPED_FILE} lists them")
