"""Scores of masks that count background, beside the mIoU of released models, which does not.

Shapes: H W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from model.labelled.sets import BACKGROUND_NAME, SegmentationSet
from model.scores.objects import (
    Floats,
    absent_names,
    boundary_f,
    fitted_thresholds,
    iou,
    iou_curve,
    objects_of,
)
from model.scores.pixels import BACKGROUND, NO_CLASS

NAMES_GIVEN: Final = "IoU, names given"
IOU: Final = "IoU with background"
BOUNDARY: Final = "boundary F"
ABSENT: Final = "absent names (%)"
Array = NDArray[np.generic]


@dataclass(slots=True)
class ObjectScores:
    """Collects the scores of each image of a set.

    Attributes:
        given: The set.
        is_fitted: Whether a pixel is background by its cosine, under a threshold fitted on the
            other images; else it is where the model finds it.
        values: By metric, a list for each image: a number for each of its names, or objects.
    """

    given: SegmentationSet
    is_fitted: bool
    values: dict[str, list[list[float]]] = field(default_factory=dict)
    _curves: list[list[Floats]] = field(default_factory=list)

    def names_of(self, index: int) -> tuple[list[str], list[str]]:
        """The names that an image shows; and those of its objects, with six that it lacks."""
        names = self.given.names
        shown = [names[label] for label in sorted(self.given.shown(index))]
        things = [name for label, name in enumerate(names) if label not in self.given.stuff]
        of_objects = [name for name in shown if name in things and name != BACKGROUND_NAME]
        image = self.given.images[index]
        lacking = absent_names(set(things) - {BACKGROUND_NAME}, of_objects, image.label)
        return [name for name in shown if name != BACKGROUND_NAME], [*of_objects, *lacking]

    def add_named(self, index: int, names: Sequence[str], labels_HW: Array) -> None:
        """Count the mask of an image of which all its names were asked for."""
        called_HW = self._classes(names, labels_HW, NO_CLASS)
        truth_HW = self.given.read(index)
        self._add(NAMES_GIVEN, [iou(truth_HW, called_HW, one) for one in objects_of(truth_HW)])

    def add_objects(self, index: int, names: Sequence[str], scored: Array) -> None:
        """Count the mask and cosines [2, H, W] of an image of which its objects were asked for."""
        truth_HW = self._objects(index)
        called_HW = self._classes(names, scored[0], BACKGROUND)
        if self.is_fitted:
            self._curves.append(
                [iou_curve(truth_HW, called_HW, scored[1], one) for one in objects_of(truth_HW)]
            )
        else:
            self._add_found(truth_HW, called_HW)

    def thresholds(self) -> Floats:
        """Of each image, fitted on the others."""
        return fitted_thresholds(self._curves)

    def add_above(self, index: int, names: Sequence[str], scored: Array, threshold: float) -> None:
        """Count the mask and cosines of an image above a threshold."""
        called_HW = self._classes(names, scored[0], BACKGROUND)
        called_HW[scored[1].astype(np.float64) < threshold] = BACKGROUND
        self._add_found(self._objects(index), called_HW)

    def _objects(self, index: int) -> NDArray[np.int64]:
        truth_HW = self.given.read_objects(index)
        assert truth_HW is not None  # such a set is not asked for objects
        return truth_HW

    def _classes(self, names: Sequence[str], labels_HW: Array, nothing: int) -> NDArray[np.int64]:
        """Classes of the set for labels of the answer."""
        classes = np.asarray([nothing, *(self.given.names.index(name) for name in names)])
        found: NDArray[np.int64] = classes[labels_HW.astype(np.int64)]
        return found

    def _add_found(self, truth_HW: NDArray[np.int64], called_HW: NDArray[np.int64]) -> None:
        objects = objects_of(truth_HW)
        self._add(IOU, [iou(truth_HW, called_HW, one) for one in objects])
        self._add(BOUNDARY, [boundary_f(truth_HW, called_HW, one) for one in objects])
        counted_P = called_HW[truth_HW != NO_CLASS]
        self._add(ABSENT, [float((~np.isin(counted_P, [BACKGROUND, *objects])).mean())])

    def _add(self, metric: str, values: list[float]) -> None:
        self.values.setdefault(metric, []).append(values)
