"""Label maps to polygons along the edges of pixels, exact, in COCO's form.

COCO's polygons have no holes: each hole is joined to what is around it by a cut, there and back.
Pixels that touch at a corner only belong to different polygons. Shapes: H W pixels.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from operator import itemgetter

import numpy as np

from model.winner_map import Labels
from service.masks.corners import Corners, find_corners

Polygon = list[int]


def class_polygons(labels_HW: Labels, num_classes: int) -> list[list[Polygon]]:
    """For classes 1 to `num_classes` the polygons, each as x, y, x, y, ... in pixels."""
    polygons: list[list[Polygon]] = [[] for _ in range(num_classes)]
    for label, polygon in _trace(labels_HW, find_corners(labels_HW)):
        if label <= num_classes:
            polygons[label - 1].append(polygon)
    return polygons


@dataclass(slots=True)
class _Tracer:
    """Follows corners around outlines and holes.

    Attributes:
        x, y: Of each corner.
        across: The corner at the other end of its horizontal edge.
        cuts: Behind each corner: holes that are joined to the vertical edge which begins there, as
            the cut's y and the points to insert.
    """

    x: list[int]
    y: list[int]
    across: list[int]
    cuts: dict[int, list[tuple[int, Polygon]]] = field(default_factory=lambda: defaultdict(list))

    def rings(self) -> Iterator[list[int]]:
        """All closed lines, each from its leftmost corner, of these the uppermost, downwards."""
        is_done = bytearray(len(self.x))
        for start in range(len(self.x)):
            ring: list[int] = []
            corner = start
            while not is_done[corner]:
                below = corner ^ 1
                is_done[corner] = is_done[below] = 1
                ring += (corner, below)
                corner = self.across[below]
            if ring:
                yield ring

    def points(self, ring: Sequence[int]) -> Polygon:
        """Coordinates along a ring and around the holes that are joined to it."""
        points: Polygon = []
        for corner in ring:
            points += (self.x[corner], self.y[corner])
            if corner in self.cuts:
                is_upward = self.y[corner ^ 1] < self.y[corner]
                for _, hole in sorted(self.cuts[corner], key=itemgetter(0), reverse=is_upward):
                    points += hole
        return points


def _trace(labels_HW: Labels, corners: Corners) -> Iterator[tuple[int, Polygon]]:
    """All polygons with their classes."""
    tracer = _Tracer(corners.x_E.tolist(), corners.y_E.tolist(), corners.across_E.tolist())
    labels, is_filled = corners.label_E.tolist(), corners.is_filled_E.tolist()
    outlines: list[list[int]] = []
    holes: list[list[int]] = []
    begin: dict[int, int] = {}
    for ring in tracer.rings():
        if not is_filled[ring[0]]:  # what is right of its leftmost corner belongs to others
            ring[1:] = ring[:0:-1]
        (outlines if is_filled[ring[0]] else holes).append(ring)
        # At which end each vertical edge is entered.
        begin |= {
            corner >> 1: corner for corner, to in pairwise([*ring, ring[0]]) if corner ^ 1 == to
        }
    for ring in reversed(holes):  # from right to left: what hangs on a hole is joined before it
        first = ring[0]
        x, y = tracer.x[first], tracer.y[first]
        others = np.flatnonzero(labels_HW[y, :x] != labels[first])
        left = int(others[-1]) + 1 if len(others) else 0
        key = corners.key(labels[first], left, y)
        edge = int(np.searchsorted(corners.key_E, key + 1, side="right")) - 1 >> 1
        tracer.cuts[begin[edge]].append((y, [left, y, *tracer.points(ring), x, y, left, y]))
    for ring in outlines:
        yield labels[ring[0]], tracer.points(ring)
