"""`python -m training shards`: build, index and describe WebDataset shards."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from training.data.shards.image_folder import ImageFolder, describe_folder
from training.data.shards.manifest import DEFAULT_SHARD_SIZE, index_shards
from training.data.shards.parquet import ParquetColumns, ParquetItems
from training.data.shards.sample import BrokenList
from training.data.shards.writing import SKIPPED_FILE, SampleSource, build_shards


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the subcommands and their options."""
    kinds = parser.add_subparsers(dest="kind", required=True)
    folder = kinds.add_parser("folder", help="build from images with optional .txt or .json files")
    folder.add_argument("images", type=Path)
    parquet = kinds.add_parser("parquet", help="build from rows of Parquet files")
    parquet.add_argument("files", type=Path, nargs="+")
    parquet.add_argument("--image", default="image", help="column of image bytes or paths")
    parquet.add_argument("--caption", action="append", default=[], metavar="SOURCE=COLUMN")
    parquet.add_argument("--keep", action="append", default=[], metavar="COLUMN")
    parquet.add_argument("--root", type=Path, default=Path(), help="base folder of paths")
    for builder, make_source in ((folder, _folder), (parquet, _parquet)):
        builder.add_argument("--output", type=Path, required=True)
        builder.add_argument("--shard-size", type=int, default=DEFAULT_SHARD_SIZE)
        builder.set_defaults(act=_build(make_source))
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


def _build(
    make_source: Callable[[argparse.Namespace], SampleSource],
) -> Callable[[argparse.Namespace], None]:
    def act(options: argparse.Namespace) -> None:
        skipped = build_shards(make_source(options), options.output, options.shard_size)
        if len(skipped):
            listed = options.output / SKIPPED_FILE
            print(f"{len(skipped)} broken samples are left out: {skipped.reasons()}")
            print(f"{listed} lists them")
        print(describe_folder(options.output))

    return act


def _folder(options: argparse.Namespace) -> ImageFolder:
    images = ImageFolder(options.images)
    # Bad captions are counted here, because the shards do not have them any more.
    print(f"{options.images} holds {images.kind}: {images.summary()}")
    return images


def _parquet(options: argparse.Namespace) -> ParquetItems:
    columns = ParquetColumns(
        image=options.image, captions=_sources(options.caption), kept=tuple(options.keep)
    )
    return ParquetItems(options.files, columns, root=options.root)


def _sources(lines: Sequence[str]) -> dict[str, str]:
    """Read SOURCE=COLUMN lines."""
    pairs = [line.partition("=") for line in lines]
    wrong = [line for line, pair in zip(lines, pairs, strict=True) if not pair[0] or not pair[2]]
    if wrong:
        raise ValueError(f"--caption {wrong[0]!r} must be SOURCE=COLUMN")
    return {source: column for source, _, column in pairs}


def _index(options: argparse.Namespace) -> None:
    broken = BrokenList()
    index_shards(options.folder, broken)
    if len(broken):
        print(f"{len(broken)} samples are broken; batches will skip them: {broken.reasons()}")
    print(describe_folder(options.folder))


def _describe(options: argparse.Namespace) -> None:
    print(describe_folder(options.folder))
