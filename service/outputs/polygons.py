"""Label maps as polygons in COCO's format.

Polygons follow the edges of pixels exactly. COCO's polygons have no holes: a hole is filled, or a
cut of no width joins it to the outline around it, which editors draw as a slit. Pixels that touch
at a corner only belong to different polygons.

Shape legend: H W pixels, V points where four pixels meet, P points of a class or of a polygon.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import chain, product
from operator import itemgetter, mul, sub
from typing import Final

import numpy as np
from numpy.typing import NDArray

from model.winner_map import Labels
from service.messages import Holes

Ints = NDArray[np.int64]
Polygon = list[int]
# A closed line with the class on its left: points, and the directions in which it leaves them.
Ring = list[tuple[int, int]]
# Pixels that are looked at at once.
BAND_PIXELS: Final = 1024 * 1024
# Each is left of the one before.
SOUTH, EAST, NORTH, WEST = range(4)
# A point's code for a class is the sum of 1, 2, 4 and 8 for the pixels to the upper left, upper
# right, lower left and lower right that have the class.
LOWER_RIGHT: Final = 8
# Whether an outline turns at a point, and in which directions it leaves the point, by the code.
TURNS: Final = np.array([bin(code).count("1") % 2 == 1 or code in (6, 9) for code in range(16)])
LEAVES: Final = [
    [
        direction
        for direction, inside, outside in ((SOUTH, d, c), (EAST, b, d), (NORTH, a, b), (WEST, c, a))
        if inside and not outside
    ]
    for d, c, b, a in product((0, 1), repeat=4)
]


def class_polygons(
    labels_HW: Labels, num_classes: int, *, holes: Holes = "keep", min_area: float = 0
) -> list[list[Polygon]]:
    """Polygons of classes 1 to `num_classes`, each as x, y, x, y, ... in pixels.

    Args:
        labels_HW: The label map.
        num_classes: Classes with a list of polygons.
        holes: Whether polygons have their holes. They are filled with all that lies in them.
        min_area: A hole with fewer pixels is filled, and then a polygon with fewer is left out.
    """
    height, width = labels_HW.shape
    # In bands, so that a large map takes few bytes.
    num_rows = max(1, BAND_PIXELS // width)
    bands = [_points(labels_HW, top, num_rows) for top in range(0, height + 1, num_rows)]
    y_V, x_V, *pixels = np.concatenate(bands, axis=1)
    pixels_4V, weights = np.stack(pixels).astype(labels_HW.dtype), 2 ** np.arange(4)
    polygons: list[list[Polygon]] = [[] for _ in range(num_classes)]
    for label in np.unique(pixels_4V).tolist():
        if 0 < label <= num_classes:
            own = np.flatnonzero((pixels_4V == label).any(axis=0))
            own = own[np.lexsort((y_V[own], x_V[own]))]
            code_P = weights @ (pixels_4V[:, own] == label)
            is_turn_P = TURNS[code_P]
            own, code_P = own[is_turn_P], code_P[is_turn_P]
            hole_area = np.inf if holes == "fill" else min_area
            traced = _trace((x_V[own], y_V[own], code_P), hole_area)
            polygons[label - 1] = [one for one in traced if _area(one) >= min_area]
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


def _area(polygon: Polygon) -> int:
    """Number of pixels in a polygon; those of joined holes do not count."""
    x, y = polygon[::2], polygon[1::2]
    # Vertical edges alone: the sum over them is the integral of x dy.
    area: int = sum(map(mul, x, map(sub, [*y[1:], y[0]], y)))
    return abs(area)


def _trace(points: tuple[Ints, Ints, Ints], hole_area: float) -> list[Polygon]:
    """The polygons of a class from its points: x, y and codes, by column, then from the top.

    Holes with fewer pixels than `hole_area` are filled.
    """
    x_P, y_P, code_P = points
    code, columns = code_P.tolist(), list(zip(x_P.tolist(), y_P.tolist(), strict=True))
    # Holes joined to the vertical edge that begins at a point: y of the cut, and points to insert.
    cuts: dict[int, list[tuple[int, Polygon]]] = defaultdict(list)

    def polygon(ring: Ring) -> Polygon:
        """Coordinates along a ring, including the holes joined to it."""
        coordinates: Polygon = []
        for point, direction in ring:
            coordinates += columns[point]
            if direction == SOUTH and point in cuts:
                for _, hole in sorted(cuts[point], key=itemgetter(0)):
                    coordinates += hole
        return coordinates

    outer: list[Ring] = []
    holes: list[Ring] = []
    for ring in _rings(x_P, y_P, code):
        if code[ring[0][0]] & LOWER_RIGHT:
            outer.append(ring)
        elif hole_area < np.inf and _area(polygon(ring)) >= hole_area:
            holes.append(ring)
    # Vertical edges with the class on their right, by column: those that a cut to the left meets.
    lines = (point for ring in chain(outer, holes) for point, way in ring if way == SOUTH)
    edge_E = np.array(sorted(lines) if holes else [], np.int64)
    x_E, top_E, stop_E = x_P[edge_E], y_P[edge_E], y_P[edge_E + 1]
    for ring in reversed(holes):  # from right to left, so that holes joined to a hole come first
        right, row = columns[ring[0][0]]
        num_left = int(np.searchsorted(x_E, right))
        is_met_E = (top_E[:num_left] <= row) & (row < stop_E[:num_left])
        edge = int(edge_E[np.flatnonzero(is_met_E)[-1]])
        left = columns[edge][0]
        cuts[edge].append((row, [left, row, *polygon(ring), right, row, left, row]))
    return [polygon(ring) for ring in outer]


def _rings(x_P: Ints, y_P: Ints, code: Sequence[int]) -> Iterator[Ring]:
    """The outlines of a class; each starts at its leftmost point, the uppermost of several."""
    point_P = np.arange(len(code))
    by_row_P = np.lexsort((x_P, y_P))
    place_P = np.empty_like(by_row_P)
    place_P[by_row_P] = point_P
    east_P, west_P = by_row_P[(place_P + 1) % max(len(code), 1)], by_row_P[place_P - 1]
    following = [ahead_P.tolist() for ahead_P in (point_P + 1, east_P, point_P - 1, west_P)]
    is_done = bytearray(4 * len(code))
    for start in range(len(code)):
        for first in LEAVES[code[start]]:
            ring: Ring = []
            point, direction = start, first
            while not is_done[4 * point + direction]:
                is_done[4 * point + direction] = 1
                ring.append((point, direction))
                point = following[direction][point]
                leaves = LEAVES[code[point]]
                # Where pixels touch at a corner, the line stays at the same pixel: it turns left.
                direction = leaves[0] if len(leaves) == 1 else (direction + 1) % 4
            if ring:
                yield ring
