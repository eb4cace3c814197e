"""`python -m training shards`: build, index and describe WebDataset shards."""

import argparse
from pathlib import Path

from training.data.shards.image_folder import ImageFolder, describe_folder
from training.data.shards.manifest import DEFAULT_SHARD_SIZE, index_shards
from training.data.shards.sample import BrokenList
from training.data.shards.writing import SKIPPED_FILE, build_shards


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the subcommands and their options."""
    kinds = parser.add_subparsers(dest="kind", required=True)
    folder = kinds.add_parser("folder", help="build from images with optional .txt or .json files")
    folder.add_argument("images", type=Path)
    folder.add_argument("--output", type=Path, required=True)
    folder.add_argument("--shard-size", type=int, default=DEFAULT_SHARD_SIZE)
    folder.set_defaults(act=_build)
    for kind, act, text in (
        ("index", _index, "index existing shards for random access"),
        ("describe", _describe, "describe a folder of shards or images"),
    ):
        reader = kinds.add_parser(kind, help=text)
        reader.add_argument("folder", type=Path)
        reader.set_defaults(act=act)


def run(options: argparse.Namespace) -> None:
    """Run the chosen subcommand."""
    options.act(options)


def _build(options: argparse.Namespace) -> None:
    images = ImageFolder(options.images)
    # Bad captions are counted here, because the shards do not have them any more.
    print(f"{options.images} holds {images.kind}: {images.summary()}")
    skipped = build_shards(images, options.output, options.shard_size)
    if len(skipped):
        listed = options.output / SKIPPED_FILE
        print(f"{len(skipped)} broken samples are left out: {skipped.reasons()}")
        print(f"{listed} lists them")
    print(describe_folder(options.output))


def _index(options: argparse.Namespace) -> None:
    broken = BrokenList()
    index_shards(options.folder, broken)
    if len(broken):
        print(f"{len(broken)} samples are broken; batches will skip them: {broken.reasons()}")
    print(describe_folder(options.folder))


def _describe(options: argparse.Namespace) -> None:
    print(describe_folder(options.folder))
