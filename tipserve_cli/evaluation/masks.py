"""Scores of masks: all names pixel by pixel, and objects with background.

Shapes: K classes, H W pixels.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from model.labelled.sets import (
    BACKGROUND_NAME,
    OWN_SEGMENTATION,
    SEGMENTATION,
    SegmentationSet,
    SetError,
)
from model.scores.objects import (
    absent_names,
    boundary_f,
    fitted_thresholds,
    iou,
    iou_curve,
    objects_of,
)
from model.scores.pixels import BACKGROUND, NO_CLASS, Pixels, count_pixels
from tipserve_cli.evaluation.answers import Answers, Question
from tipserve_cli.evaluation.options import EvaluateOptions
from tipserve_cli.evaluation.results import Floats, Result, Score, ShownMask, Sums, result_of

MASK_OPTIONS: Final = (
    "mode", "features", "templates", "resolution", "quality", "background", "background_level",
    "background_threshold",
)  # fmt: skip
Array = NDArray[np.generic]


def score_segmentation(
    given: SegmentationSet, answers: Answers, options: EvaluateOptions
) -> Result:
    """Compare predicted with true masks.

    Pixels of a class of the model that the set does not have are errors of their own class only.
    """
    question = _about_masks(options, given.names)
    task, labels = SEGMENTATION, question.classes
    if options.classes is not None:
        task, labels = OWN_SEGMENTATION, answers.classes_of(given.images[0], question)
        unknown = [name for name in given.names if name not in labels]
        if unknown:
            raise SetError(
                f"{given.name}: the model has no class {unknown[0]!r}; it has {', '.join(labels)}."
            )
    number_of = {name: number for number, name in enumerate(given.names)}
    # Class of each label of the model; 0 is its background.
    class_of = np.asarray([number_of.get(name, NO_CLASS) for name in (BACKGROUND_NAME, *labels)])
    objects = _ObjectScores(given, options)
    asked = [[question, *objects.questions(index)] for index in range(len(given.images))]

    def called() -> Iterator[NDArray[np.int64]]:
        for index, (mask_HW, *more) in enumerate(answers.each_of(given.images, asked)):
            for one, array in zip(asked[index][1:], more, strict=True):
                objects.add(index, one, array)
            yield class_of[mask_HW]

    result = _masks_result(task, given, called(), options.shown(*MASK_OPTIONS))
    return replace(result, scores=[*result.scores, *objects.scores(answers, asked)])


def _about_masks(
    options: EvaluateOptions,
    names: Sequence[str],
    about: Literal["mask", "scored mask"] = "mask",
) -> Question:
    """The question for names; `background` is no class if there is a threshold."""
    asked = {name: getattr(options, name) for name in (*MASK_OPTIONS, "fit")}
    asked["templates"] = options.sentences
    is_all = options.finds_no_background
    classes = tuple(name for name in names if is_all or name != BACKGROUND_NAME)
    prompted = classes if options.classes is None else (options.classes,)
    return Question(about=about, options=asked, classes=prompted)


def _masks_result(
    task: str, given: SegmentationSet, masks: Iterable[NDArray[np.int64]], shown: Mapping[str, Any]
) -> Result:
    """Compare predicted classes [H, W] with the true ones, pixel by pixel; -1 is no class."""
    num_classes = len(given.names)
    tables = []
    confusion_KK = np.zeros((num_classes, num_classes), np.int64)
    best: list[ShownMask] = []
    worst: list[ShownMask] = []
    for index, called_HW in enumerate(masks):
        image, truth_HW = given.images[index], given.read(index)
        if truth_HW.shape != called_HW.shape:
            raise SetError(
                f"{given.maps[index]} has {truth_HW.shape}, its image {called_HW.shape} rows and "
                "columns."
            )
        table_KK, counts_3K = count_pixels(truth_HW, called_HW, num_classes)
        confusion_KK += table_KK
        tables.append(counts_3K)
        if counts_3K[1].any():
            miou = float(Pixels.of([counts_3K]).miou(np.ones((1, 1)))[0])
            mask = ShownMask(image=image, miou=miou, truth_HW=truth_HW, called_HW=called_HW)
            best = sorted([*best, mask], key=lambda one: -one.miou)[:3]
            worst = sorted([*worst, mask], key=lambda one: one.miou)[:3]
    counts = Pixels.of(tables)
    if not counts.truth_SK.any():
        raise SetError(f"{given.name}: no mask has a pixel of a class.")
    return result_of(
        task,
        given,
        {**shown, "reduce_zero_label": given.reduce_zero_label},
        [Score("mIoU", counts, Pixels.miou), Score("pixel accuracy", counts, Pixels.accuracy)],
        names=given.names,
        confusion_KK=confusion_KK,
        shown=[*best, *(one for one in worst if one not in best)],
    )


class _ObjectScores:
    """Scores that count background, beside the mIoU of released models, which does not.

    Without a background of the model, a pixel is background by its cosine, under a threshold fitted
    on the other images.
    """

    def __init__(self, given: SegmentationSet, options: EvaluateOptions) -> None:
        self._given, self._options = given, options
        self._is_fitted = options.finds_no_background
        # Objects need a background; and a threshold for an image comes from others.
        self._has_objects = given.read_objects(0) is not None and (
            len(given.images) > 1 or not self._is_fitted
        )
        # By metric, a list for each image: a number for each of its names, or objects.
        self._values: defaultdict[str, list[list[float]]] = defaultdict(list)
        self._curves: list[list[Floats]] = []

    def questions(self, index: int) -> list[Question]:
        """The mask of the names that an image shows; that of its objects, with six it lacks."""
        if self._options.classes is not None:
            return []
        names = self._given.names
        shown = [names[label] for label in sorted(self._given.shown(index))]
        shown = [name for name in shown if name != BACKGROUND_NAME]
        found = [_about_masks(self._options, shown)] if shown else []
        if self._has_objects:
            things = {name for label, name in enumerate(names) if label not in self._given.stuff}
            things -= {BACKGROUND_NAME}
            own = [name for name in shown if name in things]
            lacking = absent_names(things, own, self._given.images[index].label)
            found.append(_about_masks(self._options, [*own, *lacking], "scored mask"))
        return found

    def add(self, index: int, question: Question, array: Array) -> None:
        """Count a mask of an image, or a mask with its cosines [2, H, W]."""
        names = question.classes
        if question.about == "mask":
            called_HW = self._classes(names, array, NO_CLASS)
            truth_HW = self._given.read(index)
            ious = [iou(truth_HW, called_HW, one) for one in objects_of(truth_HW)]
            self._values["IoU, names given"].append(ious)
            return
        truth_HW = self._objects(index)
        called_HW = self._classes(names, array[0], BACKGROUND)
        if self._is_fitted:
            self._curves.append(
                [iou_curve(truth_HW, called_HW, array[1], one) for one in objects_of(truth_HW)]
            )
        else:
            self._add_found(truth_HW, called_HW)

    def scores(self, answers: Answers, asked: Sequence[Sequence[Question]]) -> Iterator[Score]:
        """Means over the objects of all images; masks at fitted thresholds are stored already."""
        if self._curves:
            silent = replace(answers, advance=lambda: None)
            scored = [own[-1:] for own in asked]
            arrays = silent.each_of(self._given.images, scored)
            thresholds = fitted_thresholds(self._curves).tolist()
            for index, ((array,), threshold) in enumerate(zip(arrays, thresholds, strict=True)):
                called_HW = self._classes(scored[index][0].classes, array[0], BACKGROUND)
                called_HW[array[1].astype(np.float64) < threshold] = BACKGROUND
                self._add_found(self._objects(index), called_HW)
        for metric, values in self._values.items():
            sum_S, count_S = np.array([(sum(own), len(own)) for own in values], np.float64).T
            yield Score(metric, Sums(sum_S, count_S), Sums.share)

    def _objects(self, index: int) -> NDArray[np.int64]:
        truth_HW = self._given.read_objects(index)
        assert truth_HW is not None  # such a set is not asked for objects
        return truth_HW

    def _classes(self, names: Sequence[str], labels_HW: Array, nothing: int) -> NDArray[np.int64]:
        """Classes of the set for labels of the answer."""
        classes = np.asarray([nothing, *(self._given.names.index(name) for name in names)])
        found: NDArray[np.int64] = classes[labels_HW.astype(np.int64)]
        return found

    def _add_found(self, truth_HW: NDArray[np.int64], called_HW: NDArray[np.int64]) -> None:
        objects = objects_of(truth_HW)
        counted_P = called_HW[truth_HW != NO_CLASS]
        absent = float((~np.isin(counted_P, [BACKGROUND, *objects])).mean())
        for metric, values in (
            ("IoU with background", [iou(truth_HW, called_HW, one) for one in objects]),
            ("boundary F", [boundary_f(truth_HW, called_HW, one) for one in objects]),
            ("absent names (%)", [absent]),
        ):
            self._values[metric].append(values)
