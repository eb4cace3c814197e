"""Scores of classes and instances, from the runs of a label map.

The probability of a class at a patch is the softmax of the cosines divided by the model's
temperature, over all classes, background classes and the threshold. It is scaled to pixels
bilinearly, as the cosines are. A score is its mean over the pixels of a class or an instance.

An instance is a set of pixels of one class that are connected by edges, not by corners. A hole of
an instance is what it surrounds, whatever lies there; pixels of one hole may touch at corners.

Runs serve all classes at once; SciPy's labelling takes a pass over the image for each.

Shape legend: H W pixels, K classes, h w patch grid, R runs, E pairs of runs that touch, G gaps
between or around the runs of an instance.
"""

import math
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from model.segmentation import bilinear_matrix, pixel_centres
from model.winner_map import Labels
from service.messages import FloatArray, Holes, Instance
from service.outputs.run_lengths import Runs

Ints = NDArray[np.int64]
Side = Literal["left", "right"]
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


@dataclass(frozen=True, slots=True)
class Calibration:
    """How likely a mask is right: the logistic function of the contrast of its class.

    The contrast is the difference between the mean cosines with the class in its mask and outside.
    See docs/evaluation.md for how well it predicts, and `model.manifest.ZeroShot`.
    """

    offset: float
    slope: float

    def confidences(
        self, labels_HW: Labels, cosine_Khw: FloatArray, counts: NDArray[np.int64]
    ) -> tuple[float, ...]:
        """Probability that each mask is right; 0 for a class without a pixel.

        Args:
            labels_HW: The label map.
            cosine_Khw: Of the classes, and then of others.
            counts: Pixels of the background and then of each class, without these others.
        """
        rows_h, columns_w = (
            (np.arange(num) * 2 + 1) * size // (2 * num)
            for num, size in zip(cosine_Khw.shape[1:], labels_HW.shape, strict=True)
        )
        label_hw = labels_HW[rows_h[:, None], columns_w]
        found = [0.0] * (len(counts) - 1)
        for k in np.flatnonzero(counts[1:]).tolist():
            cosine_hw, is_in_hw = cosine_Khw[k], label_hw == k + 1
            # A mask may be smaller than a place of the map, or cover all of them.
            inside = float(cosine_hw[is_in_hw].mean() if is_in_hw.any() else cosine_hw.max())
            outside = float(cosine_hw.min() if is_in_hw.all() else cosine_hw[~is_in_hw].mean())
            found[k] = 1 / (1 + math.exp(-self.offset - self.slope * (inside - outside)))
        return tuple(found)


def find_instances(
    runs: Runs,
    sum_R: Floats,
    size_hw: tuple[int, int],
    min_area_share: float,
    *,
    holes: Holes = "keep",
) -> tuple[Instance, ...]:
    """The instances of at least this share of the pixels, by class, then the largest first.

    Args:
        runs: Of the label map.
        sum_R: Sum of the probability of a run's class over its pixels.
        size_hw: Height and width of the label map.
        min_area_share: Holes with a smaller share are filled before instances are compared.
        holes: Whether instances keep the other holes. Scores are means over their own pixels.
    """
    if not len(sum_R):
        return ()
    _, instance_R = np.unique(_connect(len(sum_R), *_touching(runs)), return_inverse=True)
    scores = np.bincount(instance_R, sum_R) / np.bincount(instance_R, runs.num_pixels)
    min_area = min_area_share * size_hw[0] * size_hw[1]
    max_hole = np.inf if holes == "fill" else min_area
    runs, instance_R = _fill(runs, instance_R, size_hw, max_hole)
    areas = np.bincount(instance_R, runs.num_pixels).astype(np.int64)
    order_R = np.argsort(instance_R, kind="stable")
    bounds = np.cumsum([0, *np.bincount(instance_R)]).tolist()
    found = []
    for index in np.flatnonzero(areas >= min_area).tolist():
        own_R = order_R[bounds[index] : bounds[index + 1]]
        one = runs.outline(own_R, size_hw)
        found.append(
            Instance(
                label=int(runs.label_R[own_R[0]]),
                area=one.area,
                box=one.box,
                score=min(1.0, float(scores[index])),
                counts=one.counts,
            )
        )
    return tuple(sorted(found, key=lambda one: (one.label, -one.area)))


def _fill(
    runs: Runs, instance_R: Ints, size_hw: tuple[int, int], max_area: float
) -> tuple[Runs, Ints]:
    """The runs with those of holes with fewer pixels than `max_area`, and the instance of each."""
    order_R = np.argsort(instance_R, kind="stable")
    columns_R = (runs.label_R, runs.x_R, runs.top_R, runs.stop_R)
    sorted_R = Runs(*(column_R[order_R] for column_R in columns_R))
    own_R = instance_R[order_R]
    is_next_R = np.append(False, (np.diff(own_R) == 0) & (np.diff(sorted_R.x_R) == 0))
    after_G = np.flatnonzero(is_next_R)  # the run below each gap
    if not len(after_G):
        return runs, instance_R
    is_hole_G = _gap_areas(sorted_R, own_R, is_next_R, size_hw[0]) < max_area
    after_G = after_G[is_hole_G]
    tops_G, stops_G = sorted_R.stop_R[after_G - 1], sorted_R.top_R[after_G]
    added = (sorted_R.label_R[after_G], sorted_R.x_R[after_G], tops_G, stops_G)
    both = [np.concatenate(pair) for pair in zip(columns_R, added, strict=True)]
    owner_R = np.concatenate([instance_R, own_R[after_G]])
    by_place_R = np.lexsort((both[2], both[1]))
    return Runs(*(column_R[by_place_R] for column_R in both)), owner_R[by_place_R]


def _gap_areas(runs: Runs, own_R: Ints, is_next_R: NDArray[np.bool_], height: int) -> Floats:
    """Pixels of the hole of each gap between two runs of a column; infinite where it is no hole.

    Args:
        runs: By instance, then by column, then from the top.
        own_R: Their instances.
        is_next_R: Whether the run before is of the same column and instance.
        height: Of the label map.
    """
    between_G = np.flatnonzero(is_next_R)
    is_used_R = np.isin(own_R, own_R[between_G])  # of instances with gaps
    upper_G = np.flatnonzero(is_used_R & ~is_next_R)
    lower_G = np.flatnonzero(is_used_R & ~np.append(is_next_R[1:], False))
    is_other_R = np.append(True, np.diff(own_R) != 0)
    left_G = np.flatnonzero(is_used_R & is_other_R)
    right_G = np.flatnonzero(is_used_R & np.append(is_other_R[1:], True))
    # What is around an instance: above and below its columns, and a column on either side. Rows
    # are counted from the one above the map.
    above, below = np.zeros_like(upper_G), np.full_like(upper_G, height + 2)
    from_top, to_bottom = np.zeros_like(left_G), np.full_like(left_G, height + 2)
    top_G = [runs.stop_R[between_G - 1] + 1, above, runs.stop_R[lower_G] + 1, from_top, from_top]
    stop_G = [runs.top_R[between_G] + 1, runs.top_R[upper_G] + 1, below, to_bottom, to_bottom]
    # Each instance has columns of its own, apart from those of the others.
    x_R = runs.x_R + own_R * (int(runs.x_R.max()) + 4)
    x_G = [x_R[between_G], x_R[upper_G], x_R[lower_G], x_R[left_G] - 1, x_R[right_G] + 1]
    x, top, stop = (np.concatenate(parts) for parts in (x_G, top_G, stop_G))
    order_G = np.lexsort((top, x))
    gaps = Runs(np.zeros_like(x), x[order_G], top[order_G], stop[order_G])
    root_G = np.empty_like(x)
    root_G[order_G] = _connect(len(x), *_touching(gaps, by_corners=True))
    areas: Floats = np.bincount(root_G, stop - top).astype(np.float64)
    areas[root_G[len(between_G) :]] = np.inf
    return areas[root_G[: len(between_G)]]


def _connect(num_runs: int, here_E: Ints, there_E: Ints) -> Ints:
    """The first run of those that each run is connected with, by pairs that touch."""
    root_R = np.arange(num_runs)
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


def _touching(runs: Runs, *, by_corners: bool = False) -> tuple[Ints, Ints]:
    """Pairs of runs of one label that share an edge, or a corner: all with the next column."""
    # A position that orders all rows of all columns; a run touches those of the next column whose
    # rows overlap its own.
    height = int(runs.stop_R.max()) + 1
    stop_position_R = runs.x_R * height + runs.stop_R
    top_position_R = runs.x_R * height + runs.top_R
    sides: tuple[Side, Side] = ("left", "right") if by_corners else ("right", "left")
    first_R = np.searchsorted(stop_position_R, top_position_R + height, side=sides[0])
    last_R = np.searchsorted(top_position_R, stop_position_R + height, side=sides[1])
    num_R = np.maximum(last_R - first_R, 0)
    here_E = np.repeat(np.arange(len(num_R)), num_R)
    offset_E = np.arange(len(here_E)) - np.repeat(np.cumsum(num_R) - num_R, num_R)
    there_E = first_R[here_E] + offset_E
    is_same_E = runs.label_R[here_E] == runs.label_R[there_E]
    return here_E[is_same_E], there_E[is_same_E]
