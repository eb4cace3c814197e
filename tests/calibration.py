"""Fits the confidence in masks, and prints how reliable it is: `python -m tests.calibration`.

The photographs and scenes are asked for the objects that an image shows with six absent names, for
these with all stuff too, and for each name alone. A mask is right if its IoU is at least 0.5; one
of an absent name is wrong. Each way of asking has the same weight. The printed confidences are of
fits without the masks of their own image.

Shapes: M masks.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from model.labelled.sets import SegmentationSet
from model.scores.objects import absent_names, iou
from model.scores.pixels import BACKGROUND, NO_CLASS
from tests.scored_masks import called_classes, photographs, scenes
from tipserve_cli.local import load, open_manifest

FLAGS: Final = ("--model=bundled", "--runtime=onnx", "--precision=fp32")
EDGES: Final = (0, 0.2, 0.4, 0.6, 0.8, 1)
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class JudgedMask:
    """A mask with pixels: its image, how it was asked for, its confidence, and whether it is right.

    `is_shown` says whether the image shows the name at all.
    """

    image: str
    asked: str
    confidence: float
    is_right: bool
    is_shown: bool


def judged_masks(given: SegmentationSet, client: Any, **options: Any) -> Iterator[JudgedMask]:
    """The masks that a model finds in a set with a background, each of which is right or wrong."""
    things = [name for label, name in enumerate(given.names) if label not in given.stuff]
    for index, image in enumerate(given.images):
        objects_HW, pixels_HW = given.read_objects(index), given.read(index)
        assert objects_HW is not None
        shown = [given.names[label] for label in sorted(given.shown(index))]
        own = [name for name in shown if name in things]
        stuff = [name for name in shown if name not in things]
        absent = absent_names(things, own, image.label)
        alone = [("alone", [name]) for name in (*own, *stuff, *absent)]
        together = [("objects", [*own, *absent]), ("all", [*own, *stuff, *absent])]
        for asked, names in (*together, *alone):
            (mask,) = client.segment(image.read(), names, **options)
            for name, found in zip(names, mask.classes, strict=True):
                if not found.area_share:
                    continue
                is_thing = name in things
                truth_HW = objects_HW if is_thing else pixels_HW
                nothing = BACKGROUND if is_thing else NO_CLASS
                called_HW = called_classes(given, names, mask.labels, nothing)
                is_right = name in shown and (
                    iou(truth_HW, called_HW, list(given.names).index(name)) >= 0.5
                )
                place = f"{given.name} {index}"
                yield JudgedMask(place, asked, found.confidence, is_right, name in shown)


def fit(feature_M: Floats, is_right_M: Floats, weight_M: Floats) -> tuple[float, float]:
    """Offset and slope of the logistic function with the largest likelihood, by Newton's method."""
    rows_M2 = np.stack([np.ones_like(feature_M), feature_M], axis=1)
    found_2 = np.zeros(2)
    for _ in range(30):
        share_M = 1 / (1 + np.exp(-rows_M2 @ found_2))
        slope_2 = rows_M2.T @ (weight_M * (is_right_M - share_M))
        curve_22 = (rows_M2.T * (weight_M * share_M * (1 - share_M))) @ rows_M2
        found_2 += np.linalg.solve(curve_22 + 1e-6 * np.eye(2), slope_2)
    return float(found_2[0]), float(found_2[1])


def main() -> None:
    """Ask, fit and print."""
    engine, zero_shot = load(FLAGS, heads=()), open_manifest(FLAGS).zero_shot
    masks = [
        one
        for quality in ("fast", "fine")
        for given in (photographs(), scenes())
        for one in judged_masks(given, engine.client, quality=quality)
    ]
    engine.close()
    logit_M = np.array([math.log(m.confidence / (1 - m.confidence)) for m in masks])
    contrast_M = (logit_M - zero_shot.confidence_offset) / zero_shot.confidence_slope
    is_right_M = np.array([m.is_right for m in masks], np.float64)
    asked_M, image_M = np.array([m.asked for m in masks]), np.array([m.image for m in masks])
    weight_M = np.select(
        [asked_M == asked for asked in np.unique(asked_M)],
        [1 / np.mean(asked_M == asked) for asked in np.unique(asked_M)],
    )
    print("offset %.2f, slope %.2f" % fit(contrast_M, is_right_M, weight_M))  # noqa: UP031
    left_out_M = np.empty_like(contrast_M)
    for image in np.unique(image_M):
        own_M = image_M == image
        offset, slope = fit(contrast_M[~own_M], is_right_M[~own_M], weight_M[~own_M])
        left_out_M[own_M] = 1 / (1 + np.exp(-offset - slope * contrast_M[own_M]))
    print(f"Brier score {np.mean((left_out_M - is_right_M) ** 2):.3f}")
    is_shown_M = np.array([m.is_shown for m in masks])
    for name, chosen_M in (
        ("all", np.ones_like(is_shown_M)),
        ("several names", asked_M != "alone"),
        ("one name", asked_M == "alone"),
        ("absent names", ~is_shown_M),
    ):
        for low, high in pairwise(EDGES):
            in_bin_M = chosen_M & (left_out_M >= low) & (left_out_M < high)
            if in_bin_M.any():
                mean, right = left_out_M[in_bin_M].mean(), is_right_M[in_bin_M].mean()
                print(f"{name}, {low} to {high}: {in_bin_M.sum()}, {mean:.2f}, right {right:.2f}")


if __name__ == "__main__":
    main()
