"""`python -m training dense-heads`: depth, normals and segmentation for a package."""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from model.labelled.known import TRAIN_READERS, read_known, read_train
from model.labelled.sets import read_depth, read_normals, read_segmentation
from model.package import open_package
from training.data.folder import DataFolder
from training.dense.head import HEAD_KINDS
from training.dense.job import DenseHeadsJob
from training.dense.labelled import LabelledData, hold_out
from training.dense.rooms import rendered_rooms


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the job's options."""
    parser.add_argument(
        "--model", default="bundled", help="a package, or bundled (default) or bundled-student"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the new package")
    parser.add_argument("--kind", choices=HEAD_KINDS, default="dpt", help="of heads (default dpt)")
    parser.add_argument("--steps", type=int, default=400, help="of each fit (default 400)")
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("runs/dense-heads"),
        help="folder of renders and embeddings (default runs/dense-heads)",
    )
    sets = parser.add_argument_group(
        "labelled images, as `tipserve evaluate` reads them; without any, rooms are rendered, for "
        "depth and normals"
    )
    add = partial(sets.add_argument, default=[])
    add(
        "--dataset",
        nargs=2,
        action="append",
        metavar=("NAME", "FOLDER"),
        help=f"a known set, trained on and scored as published: {', '.join(TRAIN_READERS)}",
    )
    add(
        "--segmentation",
        nargs=3,
        type=Path,
        metavar=("IMAGES", "MASKS", "NAMES"),
        help="masks of one's own; every fifth image is held out for the scores, here and below",
    )
    add("--depth", nargs=2, type=Path, metavar=("IMAGES", "DEPTHS"), help="depth of one's own")
    add("--normals", nargs=2, type=Path, metavar=("IMAGES", "NORMALS"), help="and normals")
    sets.add_argument(
        "--reduce-zero-label",
        action="store_true",
        help="in masks, label 0 is no class, and label k the k-th name from 1",
    )
    rooms = parser.add_argument_group("rendered rooms")
    rooms.add_argument(
        "--data", type=Path, default=Path("data"), help="the data job's folder (default data)"
    )
    rooms.add_argument("--renders", type=int, default=300, help="rooms to train on (default 300)")
    rooms.add_argument(
        "--tests", type=int, default=150, help="rooms of the held-out catalogue (default 150)"
    )


def run(options: argparse.Namespace) -> None:
    """Fit, score, and write the package.

    Raises:
        ValueError: An option or a set is invalid.
    """
    if min(options.renders, options.tests, options.steps) < 1:
        raise ValueError("--renders, --tests and --steps must be at least 1")
    package = open_package(options.model)
    sources = _labelled(options) or rendered_rooms(
        DataFolder(path=options.data),
        options.folder,
        side=package.manifest.native_size,
        num_renders=options.renders,
        num_tests=options.tests,
    )
    tasks = [source.task for source in sources]
    twice = next((task for task in tasks if tasks.count(task) > 1), None)
    if twice is not None:
        raise ValueError(f"two sets are for {twice}; give one for each task")
    job = DenseHeadsJob(
        package=package,
        sources=sources,
        folder=options.folder,
        kind=options.kind,
        num_steps=options.steps,
    )
    written = job.run(options.output)
    print(f"{written.manifest.name} with {' and '.join(tasks)} is ready in {written.path}")


def _labelled(options: argparse.Namespace) -> list[LabelledData]:
    """The sets of the options."""
    folder = options.folder
    found: list[LabelledData] = []
    for name, place in options.dataset:
        if name not in TRAIN_READERS:
            raise ValueError(f"--dataset is one of {', '.join(TRAIN_READERS)}, not {name}")
        train, test = (read(name, Path(place)) for read in (read_train, read_known))
        found.append(LabelledData(train=train, test=test, folder=folder))  # type: ignore[arg-type]
    read_masks = partial(read_segmentation, reduce_zero_label=options.reduce_zero_label)
    readers: list[tuple[list[Path], Callable[..., Any]]] = [
        (options.segmentation, read_masks),
        (options.depth, read_depth),
        (options.normals, read_normals),
    ]
    found += [hold_out(read(*paths), folder) for paths, read in readers if paths]
    return found
