"""Scores of masks on photographs and composed scenes, for tests that must see a worse mask."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.labelled.polygons import read_polygons
from model.labelled.sets import SegmentationSet, read_segmentation
from model.scores.objects import absent_names, iou, objects_of
from model.scores.pixels import BACKGROUND, NO_CLASS

DATA = Path(__file__).parent / "data"
# A mask of an image, by the names of classes: k where the k-th is, 0 elsewhere.
Segment = Callable[[bytes, list[str]], NDArray[Any]]


@cache
def photographs() -> SegmentationSet:
    """The photographs with masks drawn by hand."""
    return read_polygons(DATA / "photographs")


@cache
def scenes() -> SegmentationSet:
    """Twenty composed scenes with exact masks."""
    folder = DATA / "scenes"
    given = read_segmentation(
        folder / "images", folder / "masks", folder / "names.txt", reduce_zero_label=True
    )
    return replace(given, name=folder.name)


def object_iou(given: SegmentationSet, segment: Segment, only: Iterable[str] = ()) -> float:
    """Mean IoU of objects in percent, with the background and six absent names.

    Args:
        given: A set with a background.
        segment: What is tested.
        only: Names of images without their suffixes; all if there are none.
    """
    found: list[float] = []
    for index in _chosen(given, only):
        truth_HW = given.read_objects(index)
        assert truth_HW is not None
        things = [name for label, name in enumerate(given.names) if label not in given.stuff]
        shown = [given.names[label] for label in sorted(given.shown(index))]
        own = [name for name in shown if name in things]
        names = [*own, *absent_names(things, own, given.images[index].label)]
        called_HW = called_classes(
            given, names, segment(given.images[index].read(), names), BACKGROUND
        )
        found += [iou(truth_HW, called_HW, one) for one in objects_of(truth_HW)]
    return 100 * float(np.mean(found))


def given_iou(given: SegmentationSet, segment: Segment) -> float:
    """Mean IoU in percent of every name that an image shows, stuff too, if all are asked for."""
    found: list[float] = []
    for index in range(len(given.images)):
        truth_HW = given.read(index)
        names = [given.names[label] for label in sorted(given.shown(index))]
        called_HW = called_classes(
            given, names, segment(given.images[index].read(), names), NO_CLASS
        )
        found += [iou(truth_HW, called_HW, one) for one in objects_of(truth_HW)]
    return 100 * float(np.mean(found))


def _chosen(given: SegmentationSet, only: Iterable[str]) -> list[int]:
    stems = [image.path.stem for image in given.images]
    return [stems.index(name) for name in only] or list(range(len(stems)))


def called_classes(
    given: SegmentationSet, names: list[str], labels_HW: NDArray[Any], nothing: int
) -> NDArray[np.int64]:
    """Classes of the set, or `nothing`, for the labels of an answer about these names."""
    classes = np.asarray([nothing, *map(list(given.names).index, names)])
    called_HW: NDArray[np.int64] = classes[labels_HW.astype(np.int64)]
    return called_HW
