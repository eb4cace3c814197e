"""Scores of classes and instances, from the runs of a label map.

The probability of a class at a patch is the softmax of the cosines divided by the model's
temperature, over all classes, background classes and the threshold. It is scaled to pixels
bilinearly, as the cosines are. A score is its mean over the pixels of a class or an instance.

An instance is a set of pixels of one class that are connected by edges, not by corners.

Runs serve all classes at once; SciPy's labelling takes a pass over the image for each.

Shape legend: H W pixels, K classes, h w patch grid, R runs, E pairs of runs that touch.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from model.segmentation import bilinear_matrix, pixel_centres
from service.messages import FloatArray, Instance
from service.outputs.run_lengths import Runs

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
# Values of runs at patch rows that are in memory at once.
BAND_VALUES: Final = 512 * 1024


def score_pixels(runs: Runs, probability_Khw: FloatArray, size_hw: tuple[int, int]) -> Floats:
    """Sum of the probability of a run's class over its pixels, float64 [R].

    Args:
        runs: Their labels are from 1 to K.
        probability_Khw: Of every class at every patch.
        size_hw: Height and width of the label map.
    """
    num_rows, num_columns = probability_Khw.shape[1:]
    # Sums over the rows above a row, patch by patch: a difference of two is the sum over a run.
    down_Hh = bilinear_matrix(num_rows, size_hw[0])
    above_Hh = np.concatenate([np.zeros((1, num_rows)), down_Hh.cumsum(axis=0, dtype=np.float64)])
    table_Xh = np.ascontiguousarray(probability_Khw.transpose(0, 2, 1)).reshape(-1, num_rows)
    place_W = pixel_centres(num_columns, size_hw[1])
    sum_R = np.empty(len(runs.label_R))
    num_runs = max(1, BAND_VALUES // num_rows)
    for begin in range(0, len(sum_R), num_runs):
        part = slice(begin, begin + num_runs)
        weight_Rh = above_Hh[runs.stop_R[part]]
        weight_Rh -= above_Hh[runs.top_R[part]]
        place_R = place_W[runs.x_R[part]]
        left_R = place_R.astype(np.intp)
        right_R = np.minimum(left_R + 1, num_columns - 1)
        share_R = place_R - left_R
        first_R = (runs.label_R[part] - 1) * num_columns
        sum_R[part] = (1 - share_R) * np.vecdot(weight_Rh, table_Xh[first_R + left_R])
        sum_R[part] += share_R * np.vecdot(weight_Rh, table_Xh[first_R + right_R])
    return sum_R


def class_probabilities(
    cosine_Khw: FloatArray, temperature: float, floor_K: FloatArray | None
) -> FloatArray:
    """Softmax over the classes, [K, h, w]; the floor of a class competes as one more class."""
    logit_Khw = cosine_Khw / np.float32(temperature)
    logit_Khw -= logit_Khw.max(axis=0)
    np.exp(logit_Khw, out=logit_Khw)
    total_Khw = logit_Khw.sum(axis=0, keepdims=True)
    if floor_K is not None:
        # An absent class has an infinite floor. 80 keeps exp finite in float32.
        floor_Khw = (floor_K[:, None, None] - cosine_Khw.max(axis=0)) / np.float32(temperature)
        total_Khw = total_Khw + np.exp(np.minimum(floor_Khw, 80))
    logit_Khw /= total_Khw
    return logit_Khw


def class_scores(runs: Runs, sum_R: Floats, num_classes: int) -> tuple[float, ...]:
    """Mean probability of each class over its pixels; 0 for a class without a pixel."""
    sums = np.bincount(runs.label_R, sum_R, num_classes + 1)[1:]
    counts = np.bincount(runs.label_R, runs.num_pixels, num_classes + 1)[1:]
    # Sums of float32 may exceed their number in the last digits.
    return tuple(np.minimum(sums / np.maximum(counts, 1), 1).tolist())


def find_instances(
    runs: Runs, sum_R: Floats, size_hw: tuple[int, int], min_area_share: float
) -> tuple[Instance, ...]:
    """The instances of at least this share of the pixels, by class, then the largest first."""
    if not len(sum_R):
        return ()
    _, instance_R = np.unique(_connect(runs), return_inverse=True)
    areas = np.bincount(instance_R, runs.num_pixels).astype(np.int64)
    sums = np.bincount(instance_R, sum_R)
    order_R = np.argsort(instance_R, kind="stable")
    bounds = np.cumsum([0, *np.bincount(instance_R)]).tolist()
    found = []
    for index in np.flatnonzero(areas >= min_area_share * size_hw[0] * size_hw[1]).tolist():
        own_R = order_R[bounds[index] : bounds[index + 1]]
        one = runs.outline(own_R, size_hw)
        found.append(
            Instance(
                label=int(runs.label_R[own_R[0]]),
                area=one.area,
                box=one.box,
                score=min(1.0, float(sums[index] / areas[index])),
                counts=one.counts,
            )
        )
    return tuple(sorted(found, key=lambda one: (one.label, -one.area)))


def _connect(runs: Runs) -> Ints:
    """The first run of each run's instance."""
    root_R = np.arange(len(runs.label_R))
    here_E, there_E = _touching(runs)
    while True:
        here_root_E, there_root_E = root_R[here_E], root_R[there_E]
        if (here_root_E == there_root_E).all():
            return root_R
        # Each root points to the lowest root that it touches, then every run to its root.
        np.minimum.at(
            root_R, np.maximum(here_root_E, there_root_E), np.minimum(here_root_E, there_root_E)
        )
        while ((next_R := root_R[root_R]) != root_R).any():
            root_R = next_R


def _touching(runs: Runs) -> tuple[Ints, Ints]:
    """Pairs of runs of one label that share an edge: all of each run with the next column."""
    # A position that orders all rows of all columns; a run touches those of the next column whose
    # rows overlap its own.
    height = int(runs.stop_R.max()) + 1
    stop_position_R = runs.x_R * height + runs.stop_R
    top_position_R = runs.x_R * height + runs.top_R
    first_R = np.searchsorted(stop_position_R, top_position_R + height, side="right")
    last_R = np.searchsorted(top_position_R, stop_position_R + height, side="left")
    num_R = np.maximum(last_R - first_R, 0)
    here_E = np.repeat(np.arange(len(num_R)), num_R)
    offset_E = np.arange(len(here_E)) - np.repeat(np.cumsum(num_R) - num_R, num_R)
    there_E = first_R[here_E] + offset_E
    is_same_E = runs.label_R[here_E] == runs.label_R[there_E]
    return here_E[is_same_E], there_E[is_same_E]
