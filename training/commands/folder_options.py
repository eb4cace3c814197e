"""The options of the jobs that train on a folder of images."""

import argparse
from pathlib import Path

from training.recipes.from_folder import SIZES, SMALL, FolderRun


def add_folder_arguments(parser: argparse.ArgumentParser, *, size: str) -> None:
    """Declare the options; `size` names the one that says how large the trained model is."""
    parser.add_argument(
        "--images",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="images, each with a caption in a .txt or .json of its name or without; or shards",
    )
    parser.add_argument(
        f"--{size}",
        dest="size",
        choices=SIZES,
        default=SMALL,
        help=f"size of what is trained (default {SMALL}: 6 blocks of width 192, for a processor)",
    )
    parser.add_argument("--steps", type=int, default=1000, help="optimizer steps (default 1000)")
    parser.add_argument(
        "--batch", type=int, default=64, help="images a step, at most all of them (default 64)"
    )
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), help="where run folders are made (default runs)"
    )
    parser.add_argument(
        "--name",
        help="of the run's folder (default: of what it does, the images and the size); a run of "
        "this name that was stopped goes on",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="change one setting, such as data.crops.num_local=2",
    )


def folder_run(options: argparse.Namespace, *, kind: str) -> FolderRun:
    """Read the options; an unnamed run is named after its kind, the images and the size."""
    images: Path = options.images
    name = options.name or f"{kind}-{images.resolve().name}-{options.size}"
    return FolderRun(
        name=name,
        images=images,
        size=options.size,
        num_steps=options.steps,
        batch_size=options.batch,
    )
