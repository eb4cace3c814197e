"""Masks of objects with the background counted: where they are, and how close their outlines are.

An object is what one class covers in one image. Its IoU and its boundary F count alike, however
large it is.

Shapes: T thresholds, S images, H W pixels.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from model.scores.pixels import BACKGROUND, NO_CLASS

NUM_ABSENT: Final = 6
# Of the image's diagonal: boundaries that are closer match.
BOUNDARY_SHARE: Final = 0.02
# Cosines under which a pixel is background.
THRESHOLDS_T: Final = np.linspace(-1, 1, 401)
Floats = NDArray[np.float64]
Labels = NDArray[np.integer]
Flags = NDArray[np.bool_]


def absent_names(names: Iterable[str], shown: Iterable[str], example: str) -> list[str]:
    """The names that an image does not show and is asked for all the same: 6, drawn by hash."""
    absent = sorted(set(names) - set(shown))
    return sorted(absent, key=lambda one: hashlib.sha256(f"{example} {one}".encode()).digest())[
        :NUM_ABSENT
    ]


def objects_of(truth_HW: Labels) -> list[int]:
    """Classes with pixels that count."""
    return [int(label) for label in np.unique(truth_HW) if label not in (NO_CLASS, BACKGROUND)]


def iou_curve(
    truth_HW: Labels, called_HW: Labels, score_HW: NDArray[np.floating], label: int
) -> Floats:
    """IoU of an object [T] if pixels with a lower score than a threshold are background."""
    is_called_HW = (called_HW == label) & (truth_HW != NO_CLASS)
    is_hit_HW = is_called_HW & (truth_HW == label)
    called_T, hit_T = (_num_above(score_HW[flags_HW]) for flags_HW in (is_called_HW, is_hit_HW))
    iou_T: Floats = hit_T / (np.count_nonzero(truth_HW == label) + called_T - hit_T)
    return iou_T


def _num_above(scores_P: NDArray[np.floating]) -> Floats:
    """Number of scores at or above each threshold."""
    num_reached_P = np.searchsorted(THRESHOLDS_T, scores_P, side="right")
    counts = np.bincount(num_reached_P, minlength=len(THRESHOLDS_T) + 1)
    above_T: Floats = counts[::-1].cumsum()[::-1][1:].astype(np.float64)
    return above_T


def fitted_thresholds(curves: Sequence[Sequence[Floats]]) -> Floats:
    """For each image the threshold that is best for the objects of all others [S].

    Args:
        curves: `iou_curve` of each object of each image.
    """
    sum_ST = np.stack([np.sum(own, axis=0) + np.zeros_like(THRESHOLDS_T) for own in curves])
    threshold_S: Floats = THRESHOLDS_T[(sum_ST.sum(0) - sum_ST).argmax(1)]
    return threshold_S


def iou(truth_HW: Labels, called_HW: Labels, label: int) -> float:
    """IoU of an object; pixels that do not count are in neither."""
    is_called_HW = (called_HW == label) & (truth_HW != NO_CLASS)
    is_true_HW = truth_HW == label
    union = int(np.count_nonzero(is_called_HW | is_true_HW))
    return int(np.count_nonzero(is_called_HW & is_true_HW)) / max(union, 1)


def boundary_f(truth_HW: Labels, called_HW: Labels, label: int) -> float:
    """F of the boundary's precision and recall within 2 % of the diagonal.

    The boundary are the pixels with a neighbour outside; the image's edge is none.

    Source: DAVIS (Perazzi et al. 2016), boundary measure, with a wider tolerance.
    """
    true_HW = _boundary(truth_HW == label)
    found_HW = _boundary((called_HW == label) & (truth_HW != NO_CLASS))
    num_true, num_found = np.count_nonzero(true_HW), np.count_nonzero(found_HW)
    if not num_true or not num_found:
        return float(num_true == num_found)
    radius = max(1, round(BOUNDARY_SHARE * float(np.hypot(*truth_HW.shape))))
    precision = np.count_nonzero(found_HW & _grown(true_HW, radius)) / num_found
    recall = np.count_nonzero(true_HW & _grown(found_HW, radius)) / num_true
    return 2 * precision * recall / max(precision + recall, 1e-9)


def _boundary(flags_HW: Flags) -> Flags:
    padded = np.pad(flags_HW, 1, mode="edge")
    inner_HW = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return flags_HW & ~inner_HW


def _grown(flags_HW: Flags, radius: int) -> Flags:
    """Pixels within a distance of a set one."""
    height, width = flags_HW.shape
    count_HW = np.pad(flags_HW.cumsum(1, dtype=np.int32), ((0, 0), (1, 0)))
    column_W = np.arange(width)
    grown_HW = np.zeros_like(flags_HW)
    for down in range(-min(radius, height - 1), min(radius, height - 1) + 1):
        half = int((radius**2 - down**2) ** 0.5)
        ends, starts = np.minimum(column_W + half + 1, width), np.maximum(column_W - half, 0)
        near_HW = count_HW[:, ends] > count_HW[:, starts]
        source = slice(max(0, -down), height - max(0, down))
        target = slice(max(0, down), height - max(0, -down))
        grown_HW[target] |= near_HW[source]
    return grown_HW
