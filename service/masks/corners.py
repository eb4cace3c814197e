"""Corners of the regions of a label map, along the edges of pixels.

Shapes: H W pixels; V points where four pixels meet, E corners of all regions together. A point
where two pixels of a class touch diagonally is a corner twice, as they belong to two regions.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.winner_map import Labels

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Corners:
    """Corners in the order of class, then from left to right, then from top to bottom.

    Attributes:
        label_E: Class, from 1.
        x_E: Pixels from the left.
        y_E: Pixels from the top.
        across_E: Which corner the horizontal edge leads to. The vertical one joins 0 with 1, 2 with
            3, and so on.
        is_filled_E: Whether the pixel to the lower right is of the class.
        key_E: Ascending, as `key` gives it.
        height: Of the image.
        width: Of the image.
    """

    label_E: Ints
    x_E: Ints
    y_E: Ints
    across_E: Ints
    is_filled_E: NDArray[np.bool_]
    key_E: Ints
    height: int
    width: int

    def key(self, label: int, x: int, y: int) -> int:
        """Where in the order the first corner at this place is or would be."""
        return ((label * (self.width + 1) + x) * (self.height + 1) + y) * 2


def find_corners(labels_HW: Labels) -> Corners:
    """The corners of all classes but 0, the background."""
    height, width = labels_HW.shape
    around = np.pad(labels_HW, 1)
    a, b, c, d = around[:-1, :-1], around[:-1, 1:], around[1:, :-1], around[1:, 1:]
    is_straight = ((a == b) & (c == d)) | ((a == c) & (b == d))
    point_V = np.flatnonzero(~is_straight)
    y_V, x_V = np.divmod(point_V, width + 1)
    pixels_4V = np.stack([around[y_V + down, x_V + right] for down in (0, 1) for right in (0, 1)])
    # Columns: point, class, and in which order vertical and horizontal edges of a point come.
    found: list[Ints] = []
    for place, label_V in enumerate(pixels_4V):
        is_same_4V = pixels_4V == label_V
        is_new_V = (label_V > 0) & ~is_same_4V[:place].any(axis=0)
        number_V = is_same_4V.sum(axis=0)
        falls_V, rises_V = is_same_4V[0] & is_same_4V[3], is_same_4V[1] & is_same_4V[2]
        is_touch_V = (number_V == 2) & (falls_V | rises_V)
        single = np.flatnonzero(is_new_V & (number_V % 2 == 1))
        twice = np.flatnonzero(is_new_V & is_touch_V)
        filled = is_same_4V[3]
        for chosen, order, across in (
            (single, 0, 0),
            (twice, 0, rises_V[twice]),
            (twice, 1, ~rises_V[twice]),
        ):
            columns = (chosen, label_V[chosen], order, across, filled[chosen])
            found.append(np.stack([np.broadcast_to(v, chosen.shape) for v in columns]).astype(int))
    point, label, order, across, filled = np.concatenate(found, axis=1)
    return _in_order(label, (x_V[point], y_V[point]), (order, across, filled), (height, width))


def _in_order(
    label: Ints, place: tuple[Ints, Ints], ties: tuple[Ints, Ints, Ints], size_hw: tuple[int, int]
) -> Corners:
    height, width = size_hw
    x, y = place
    order, across, filled = ties
    key = ((label * (width + 1) + x) * (height + 1) + y) * 2 + order
    by_column = np.argsort(key)
    label, x, y, across = label[by_column], x[by_column], y[by_column], across[by_column]
    by_row = np.argsort(((label * (height + 1) + y) * (width + 1) + x) * 2 + across)
    across_E = np.empty_like(by_row)
    across_E[by_row[0::2]], across_E[by_row[1::2]] = by_row[1::2], by_row[0::2]
    return Corners(
        label_E=label,
        x_E=x,
        y_E=y,
        across_E=across_E,
        is_filled_E=filled[by_column].astype(np.bool_),
        key_E=key[by_column],
        height=height,
        width=width,
    )
