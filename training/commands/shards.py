"""`python -m training shards`: build WebDataset shards, index those of others, check, describe."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from training.data.augment import STRONG_AUGMENT
from training.data.folder import TRAIN_STYLES, DataFolder, seen_names
from training.data.scenes import SceneConfig
from training.data.shards.image_folder import ImageFolder, describe_folder
from training.data.shards.item_sources import ParquetColumns, ParquetItems, SceneItems
from training.data.shards.manifest import Manifest, find_damage, index_shards
from training.data.shards.sample import BrokenList
from training.data.shards.writing import (
    DEFAULT_SHARD_SIZE,
    SampleSource,
    ShardPlan,
    build_shards,
)

HELP = "Build WebDataset shards of images and captions, or describe a data set."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the job's kinds and their options."""
    kinds = parser.add_subparsers(dest="kind", required=True)
    scenes = kinds.add_parser("scenes", help="from composed scenes; their masks are not written")
    scenes.add_argument("--data", type=Path, default=Path("data"))
    scenes.add_argument("--count", type=int, required=True)
    scenes.add_argument("--size", type=int, default=112, help="side in pixels")
    scenes.add_argument("--seed", type=int, default=0)
    folder = kinds.add_parser("folder", help="from images with .txt or .json beside them, or none")
    folder.add_argument("images", type=Path)
    parquet = kinds.add_parser("parquet", help="from rows of Parquet files")
    parquet.add_argument("files", type=Path, nargs="+")
    parquet.add_argument("--image", default="image", help="column of bytes or of paths")
    parquet.add_argument("--caption", action="append", default=[], metavar="SOURCE=COLUMN")
    parquet.add_argument("--keep", action="append", default=[], metavar="COLUMN")
    parquet.add_argument("--root", type=Path, default=Path(), help="what paths start from")
    for builder, make_source in ((scenes, _scenes), (folder, _folder), (parquet, _parquet)):
        builder.add_argument("--output", type=Path, required=True)
        builder.add_argument("--shard-size", type=int, default=DEFAULT_SHARD_SIZE)
        builder.set_defaults(act=_build(make_source))
    for kind, act, text in (
        ("index", _index, "make shards from elsewhere readable from the middle"),
        ("verify", _verify, "compare every shard with the manifest's digest"),
        ("describe", _describe, "say what a folder of shards or images holds"),
    ):
        reader = kinds.add_parser(kind, help=text)
        reader.add_argument("folder", type=Path)
        reader.set_defaults(act=act)


def run(options: argparse.Namespace) -> None:
    """Do what was asked for."""
    options.act(options)


def _build(
    make_source: Callable[[argparse.Namespace], SampleSource],
) -> Callable[[argparse.Namespace], None]:
    def act(options: argparse.Namespace) -> None:
        plan = ShardPlan(kind=options.kind, shard_size=options.shard_size)
        _report(options.output, build_shards(make_source(options), options.output, plan))

    return act


def _scenes(options: argparse.Namespace) -> SceneItems:
    source = DataFolder(path=options.data).source(
        "train", styles=TRAIN_STYLES, names=seen_names(), seed=options.seed
    )
    config = SceneConfig(size=options.size, augment=STRONG_AUGMENT)
    return SceneItems(source=source, config=config, count=options.count)


def _folder(options: argparse.Namespace) -> ImageFolder:
    return ImageFolder(options.images)


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
        raise ValueError(f"--caption takes SOURCE=COLUMN, not {wrong[0]!r}")
    return {source: column for source, _, column in pairs}


def _index(options: argparse.Namespace) -> None:
    broken = BrokenList()
    _report(options.folder, index_shards(options.folder, broken))
    if len(broken):
        print(f"{len(broken)} samples cannot be understood; batches will pass them over")


def _verify(options: argparse.Namespace) -> None:
    damage = find_damage(options.folder)
    if damage:
        raise ValueError("; ".join(damage))
    print(f"every shard in {options.folder} is as it was written")


def _describe(options: argparse.Namespace) -> None:
    print("\n".join(describe_folder(options.folder)))


def _report(folder: Path, manifest: Manifest) -> None:
    """Say what was written."""
    skipped = f", {manifest.num_skipped} broken ones left out" if manifest.num_skipped else ""
    print(f"{len(manifest.shards)} shards are ready in {folder}{skipped}")
    print("\n".join(describe_folder(folder)))
