"""`python -m training dense-heads`: depth, normals and segmentation for a package."""

from pathlib import Path

from pydantic import PositiveInt
from pydantic.dataclasses import dataclass

from model.labelled.known import TRAIN_READERS, read_known, read_train
from model.labelled.sets import read_depth, read_normals, read_segmentation
from model.package import open_package
from training.data.folder import DataFolder
from training.dense.head import HeadKind
from training.dense.job import add_trained_heads
from training.dense.labelled import LabelledData, hold_out
from training.dense.rooms import rendered_rooms
from training.options import option


@dataclass(frozen=True, kw_only=True)
class Options:
    """Of the job; sets are read as `tipserve evaluate` does, and without any, rooms rendered."""

    model: str = option("a package, bundled or bundled-student", "bundled")
    output: Path = option("folder of the new package")
    kind: HeadKind = option("of heads", "dpt")
    steps: PositiveInt = option("of each fit", 400)
    folder: Path = option("folder of renders and embeddings", Path("runs/dense-heads"))
    dataset: tuple[tuple[str, Path], ...] = option(
        f"a known set, trained on and scored as published: {', '.join(TRAIN_READERS)}",
        (),
        metavar=("NAME", "FOLDER"),
    )
    segmentation: tuple[Path, Path, Path] | None = option(
        "masks of one's own; every fifth image is held out for the scores, here and below",
        None,
        metavar=("IMAGES", "MASKS", "NAMES"),
    )
    depth: tuple[Path, Path] | None = option(
        "depth of one's own", None, metavar=("IMAGES", "DEPTHS")
    )
    normals: tuple[Path, Path] | None = option("and normals", None, metavar=("IMAGES", "NORMALS"))
    reduce_zero_label: bool = option(
        "in masks, label 0 is no class, and label k the k-th name from 1", False
    )
    data: Path = option("the data job's folder, for rooms", Path("data"))
    renders: PositiveInt = option("rooms to train on", 300)
    tests: PositiveInt = option("rooms of the held-out catalogue", 150)


def run(options: Options) -> None:
    """Fit, score, and write the package.

    Raises:
        ValueError: An option or a set is invalid.
    """
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
    written = add_trained_heads(
        package, sources, options.output, kind=options.kind, num_steps=options.steps
    )
    print(f"{written.manifest.name} with {' and '.join(tasks)} is ready in {written.path}")


def _labelled(options: Options) -> list[LabelledData]:
    """The sets of the options."""
    folder, found = options.folder, list[LabelledData]()
    for name, place in options.dataset:
        if name not in TRAIN_READERS:
            raise ValueError(f"--dataset is one of {', '.join(TRAIN_READERS)}, not {name}")
        train, test = (read(name, place) for read in (read_train, read_known))
        found.append(LabelledData(train=train, test=test, folder=folder))  # type: ignore[arg-type]
    if options.segmentation:
        reduces = options.reduce_zero_label
        masks = read_segmentation(*options.segmentation, reduce_zero_label=reduces)
        found.append(hold_out(masks, folder))
    if options.depth:
        found.append(hold_out(read_depth(*options.depth), folder))
    if options.normals:
        found.append(hold_out(read_normals(*options.normals), folder))
    return found
