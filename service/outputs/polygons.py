"""Label maps as polygons in COCO's format.

Polygons follow the edges of pixels exactly. COCO's polygons have no holes: a cut of no width joins
each hole to the outline around it. Pixels that touch at a corner only belong to different polygons.

Shape legend: H W pixels, V points where four pixels meet, E corners of all regions, P points of a
polygon.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import itemgetter
from typing import Final, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from model.winner_map import Labels

Ints = NDArray[np.int64]
Polygon = list[int]
IntT = TypeVar("IntT", int, Ints)
Cuts = dict[int, list[tuple[int, Polygon]]]
# Pixels that are looked at at once.
BAND_PIXELS: Final = 1024 * 1024


def class_polygons(labels_HW: Labels, num_classes: int) -> list[list[Polygon]]:
    """Polygons of classes 1 to `num_classes`, each as x, y, x, y, ... in pixels."""
    polygons: list[list[Polygon]] = [[] for _ in range(num_classes)]
    for label, polygon in _trace(labels_HW, Corners.of(labels_HW)):
        if label <= num_classes:
            polygons[label - 1].append(polygon)
    return polygons


def simplify(polygon: Polygon, tolerance: float) -> Polygon:
    """Leave out corners, so that no point of the outline moves by more than so many pixels.

    An outline that would have fewer than three corners stays as it is.

    Source: Douglas and Peucker, 1973; the distance is to the segment, not to its line.
    """
    if not tolerance:
        return polygon
    point_P2 = np.array([*polygon, *polygon[:2]], np.float64).reshape(-1, 2)
    farthest = int(((point_P2 - point_P2[0]) ** 2).sum(axis=1).argmax())
    kept = {0, farthest}
    parts = [(0, farthest), (farthest, len(point_P2) - 1)]
    while parts:
        first, last = parts.pop()
        if last - first < 2:
            continue
        start_2, along_2 = point_P2[first], point_P2[last] - point_P2[first]
        offset_P2 = point_P2[first + 1 : last] - start_2
        share_P = np.clip(offset_P2 @ along_2 / max(along_2 @ along_2, 1), 0, 1)
        distance_P = np.linalg.norm(offset_P2 - share_P[:, None] * along_2, axis=1)
        worst = int(distance_P.argmax())
        if distance_P[worst] > tolerance:
            middle = first + 1 + worst
            kept.add(middle)
            parts += [(first, middle), (middle, last)]
    if len(kept) < 3:
        return polygon
    return [polygon[2 * index + axis] for index in sorted(kept) for axis in (0, 1)]


@dataclass(frozen=True, slots=True)
class Corners:
    """Corners of regions, sorted by class, then from left to right, then from top to bottom.

    A point where two pixels of a class touch only diagonally is two corners, since the pixels
    belong to two regions. Vertical edges join corners 0 and 1, 2 and 3, and so on.

    Attributes:
        label: Class of each corner, from 1.
        x: Pixels from the left.
        y: Pixels from the top.
        across: Corner at the other end of the horizontal edge.
        is_filled: Whether the pixel to the lower right has the class.
        key_E: What they are sorted by; see `key`.
        size_hw: Height and width of the map.
    """

    label: list[int]
    x: list[int]
    y: list[int]
    across: list[int]
    is_filled: list[int]
    key_E: Ints
    size_hw: tuple[int, int]

    @classmethod
    def of(cls, labels_HW: Labels) -> Self:
        """Find the corners of all classes except 0, the background."""
        height, width = size_hw = labels_HW.shape
        # In bands, so that a large map takes few bytes.
        num_rows = max(1, BAND_PIXELS // width)
        bands = [_points(labels_HW, top, num_rows) for top in range(0, height + 1, num_rows)]
        found_6E = _corners_at(np.concatenate(bands, axis=1))
        label_E, x_E, y_E, order_E, *_ = found_6E
        key_E = _key(label_E, x_E, y_E, size_hw) + order_E
        by_column = np.argsort(key_E)
        label_E, x_E, y_E, _, tie_E, filled_E = found_6E[:, by_column]
        by_row = np.argsort(((label_E * (height + 1) + y_E) * (width + 1) + x_E) * 2 + tie_E)
        across_E = np.empty_like(by_row)
        across_E[by_row[0::2]], across_E[by_row[1::2]] = by_row[1::2], by_row[0::2]
        return cls(
            label=label_E.tolist(),
            x=x_E.tolist(),
            y=y_E.tolist(),
            across=across_E.tolist(),
            is_filled=filled_E.tolist(),
            key_E=key_E[by_column],
            size_hw=size_hw,
        )

    def edge_at(self, label: int, x: int, y: int) -> int:
        """Number of the vertical edge of a class at this column that begins at or above a row."""
        key = _key(label, x, y, self.size_hw)
        return int(np.searchsorted(self.key_E, key + 1, side="right")) - 1 >> 1


def _key(label: IntT, x: IntT, y: IntT, size_hw: tuple[int, int]) -> IntT:
    """Sort key of the first of two corners at a point."""
    height, width = size_hw
    return ((label * (width + 1) + x) * (height + 1) + y) * 2


def _points(labels_HW: Labels, top: int, num_rows: int) -> Ints:
    """Points where an outline turns, in rows from `top`: y, x and the labels of the four pixels.

    Around the map is background.
    """
    bottom = min(top + num_rows, len(labels_HW) + 1)
    edges = (int(top == 0), int(bottom > len(labels_HW)))
    around = np.pad(labels_HW[max(0, top - 1) : bottom], (edges, (1, 1)))
    a, b, c, d = around[:-1, :-1], around[:-1, 1:], around[1:, :-1], around[1:, 1:]
    is_straight = ((a == b) & (c == d)) | ((a == c) & (b == d))
    # The same as `nonzero`, several times faster.
    y_V, x_V = np.divmod(np.flatnonzero(~is_straight), a.shape[1])
    return np.stack([y_V + top, x_V, *(pixels[y_V, x_V] for pixels in (a, b, c, d))])


def _corners_at(points_6V: Ints) -> Ints:
    """Corners of all classes: label, x, y, order in the column and in the row, filled."""
    y_V, x_V, *pixels = points_6V
    pixels_4V = np.stack(pixels)
    found: list[Ints] = []
    for place, label_V in enumerate(pixels_4V):
        is_same_4V = pixels_4V == label_V
        is_new_V = (label_V > 0) & ~is_same_4V[:place].any(axis=0)
        number_V = is_same_4V.sum(axis=0)
        falls_V, rises_V = is_same_4V[0] & is_same_4V[3], is_same_4V[1] & is_same_4V[2]
        is_touch_V = (number_V == 2) & (falls_V | rises_V)
        is_turn_V = number_V % 2 == 1
        for order, is_corner_V in enumerate((is_turn_V | is_touch_V, is_touch_V)):
            chosen = np.flatnonzero(is_new_V & is_corner_V)
            columns = (label_V, x_V, y_V, np.full_like(y_V, order), rises_V ^ order, is_same_4V[3])
            found.append(np.stack([column[chosen] for column in columns]).astype(np.int64))
    return np.concatenate(found, axis=1)


def _trace(labels_HW: Labels, corners: Corners) -> Iterator[tuple[int, Polygon]]:
    """All polygons with their classes."""
    outlines: list[list[int]] = []
    holes: list[list[int]] = []
    # The corner at which a ring enters each vertical edge.
    begin: dict[int, int] = {}
    # Holes joined to the vertical edge that begins at a corner: y of the cut, and points to insert.
    cuts: Cuts = defaultdict(list)
    for ring in _rings(corners):
        if not corners.is_filled[ring[0]]:  # a hole: its leftmost corner has no pixel of the class
            ring[1:] = ring[:0:-1]
        (outlines if corners.is_filled[ring[0]] else holes).append(ring)
        begin |= {
            corner >> 1: corner for corner, to in pairwise([*ring, ring[0]]) if corner ^ 1 == to
        }
    for ring in reversed(holes):  # from right to left, so that holes joined to a hole come first
        label, x, y = corners.label[ring[0]], corners.x[ring[0]], corners.y[ring[0]]
        others = np.flatnonzero(labels_HW[y, :x] != label)
        left = int(others[-1]) + 1 if len(others) else 0
        start = begin[corners.edge_at(label, left, y)]
        cuts[start].append((y, [left, y, *_polygon(ring, corners, cuts), x, y, left, y]))
    for ring in outlines:
        yield corners.label[ring[0]], _polygon(ring, corners, cuts)


def _rings(corners: Corners) -> Iterator[list[int]]:
    """Closed lines; each starts at its leftmost corner, the uppermost of several, downwards."""
    is_done = bytearray(len(corners.x))
    for start in range(len(corners.x)):
        ring: list[int] = []
        corner = start
        while not is_done[corner]:
            below = corner ^ 1
            is_done[corner] = is_done[below] = 1
            ring += (corner, below)
            corner = corners.across[below]
        if ring:
            yield ring


def _polygon(ring: Sequence[int], corners: Corners, cuts: Cuts) -> Polygon:
    """Coordinates along a ring, including the holes joined to it."""
    points: Polygon = []
    for corner in ring:
        points += (corners.x[corner], corners.y[corner])
        if corner in cuts:
            is_upward = corners.y[corner ^ 1] < corners.y[corner]
            for _, hole in sorted(cuts[corner], key=itemgetter(0), reverse=is_upward):
                points += hole
    return points
