"""Label maps as polygons and run lengths, in COCO's format.

Polygons follow the edges of pixels exactly. COCO's polygons have no holes: a cut of no width joins
each hole to the outline around it. Pixels that touch at a corner only belong to different polygons.

Run lengths count pixels column by column, outside and inside of a class in turn, for all classes in
one pass: 3.5 ms for 150 classes, against 38 ms with pycocotools.

Shape legend: H W pixels, V points where four pixels meet, E corners of all regions, K classes,
R runs, N numbers of all classes.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from operator import itemgetter
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.winner_map import Labels

Ints = NDArray[np.int64]
Polygon = list[int]
# A number is written in groups of five bits, each as one character from "0" on.
BITS: Final = 5
FIRST_CHARACTER: Final = 48
# Of one number: 35 bits.
MAX_GROUPS: Final = 7
# Pixels that are looked at at once.
BAND_PIXELS: Final = 1024 * 1024


def class_polygons(labels_HW: Labels, num_classes: int) -> list[list[Polygon]]:
    """Polygons of classes 1 to `num_classes`, each as x, y, x, y, ... in pixels."""
    polygons: list[list[Polygon]] = [[] for _ in range(num_classes)]
    for label, polygon in _trace(labels_HW, find_corners(labels_HW)):
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
    belong to two regions.

    Attributes:
        label_E: Class, from 1.
        x_E: Pixels from the left.
        y_E: Pixels from the top.
        across_E: Corner at the other end of the horizontal edge. Vertical edges join corners 0 and
            1, 2 and 3, and so on.
        is_filled_E: Whether the pixel to the lower right has the class.
        key_E: Sort keys as `key` computes them, ascending.
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
        """Sort key of the first corner at this point."""
        return ((label * (self.width + 1) + x) * (self.height + 1) + y) * 2


def find_corners(labels_HW: Labels) -> Corners:
    """Find the corners of all classes except 0, the background."""
    height, width = labels_HW.shape
    # In bands, so that a large map takes few bytes.
    num_rows = max(1, BAND_PIXELS // width)
    bands = [_points(labels_HW, top, num_rows) for top in range(0, height + 1, num_rows)]
    y_V, x_V, *pixels_4V = np.concatenate(bands, axis=1)
    return _corners_at((y_V, x_V), np.stack(pixels_4V), (height, width))


def _points(labels_HW: Labels, top: int, num_rows: int) -> Ints:
    """Points where an outline turns, in rows from `top`: y, x and the labels of the four pixels.

    Around the map is background.
    """
    bottom = min(top + num_rows, len(labels_HW) + 1)
    rows = labels_HW[max(0, top - 1) : bottom]
    edges = (int(top == 0), int(bottom > len(labels_HW)))
    around = np.pad(rows, (edges, (1, 1)))
    a, b, c, d = around[:-1, :-1], around[:-1, 1:], around[1:, :-1], around[1:, 1:]
    is_straight = ((a == b) & (c == d)) | ((a == c) & (b == d))
    # The same as `nonzero`, several times faster.
    y_V, x_V = np.divmod(np.flatnonzero(~is_straight), a.shape[1])
    return np.stack([y_V + top, x_V, *(pixels[y_V, x_V] for pixels in (a, b, c, d))])


def _corners_at(point_yx: tuple[Ints, Ints], pixels_4V: Ints, size_hw: tuple[int, int]) -> Corners:
    """Corners of all classes at points y, x with these pixels around them."""
    y_V, x_V = point_yx
    # Columns: point, class, order of its vertical edges, order of its horizontal edges, filled.
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
    return _in_order(label, (x_V[point], y_V[point]), (order, across, filled), size_hw)


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


@dataclass(slots=True)
class _Tracer:
    """Follows corners around outlines and holes.

    Attributes:
        x, y: Position of each corner.
        across: Corner at the other end of its horizontal edge.
        cuts: Holes joined to the vertical edge that starts at a corner: y of the cut, and the
            points to insert there.
    """

    x: list[int]
    y: list[int]
    across: list[int]
    cuts: dict[int, list[tuple[int, Polygon]]] = field(default_factory=lambda: defaultdict(list))

    def rings(self) -> Iterator[list[int]]:
        """Closed lines; each starts at its leftmost corner, the uppermost of several, downwards."""
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
        """Coordinates along a ring, including the holes joined to it."""
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
        if not is_filled[ring[0]]:  # a hole: its leftmost corner has no pixel of the class
            ring[1:] = ring[:0:-1]
        (outlines if is_filled[ring[0]] else holes).append(ring)
        # The corner at which the ring enters each vertical edge.
        begin |= {
            corner >> 1: corner for corner, to in pairwise([*ring, ring[0]]) if corner ^ 1 == to
        }
    for ring in reversed(holes):  # from right to left, so that holes joined to a hole come first
        first = ring[0]
        x, y = tracer.x[first], tracer.y[first]
        others = np.flatnonzero(labels_HW[y, :x] != labels[first])
        left = int(others[-1]) + 1 if len(others) else 0
        key = corners.key(labels[first], left, y)
        edge = int(np.searchsorted(corners.key_E, key + 1, side="right")) - 1 >> 1
        tracer.cuts[begin[edge]].append((y, [left, y, *tracer.points(ring), x, y, left, y]))
    for ring in outlines:
        yield labels[ring[0]], tracer.points(ring)


@dataclass(frozen=True, slots=True)
class ClassRuns:
    """Pixels of one class.

    Attributes:
        counts: Lengths of runs outside, inside, outside ... in columns from left to right.
        area: Number of pixels.
        box: Left, top, width and height; all 0 if the class has no pixel.
    """

    counts: Ints
    area: int
    box: tuple[int, int, int, int]


def class_runs(labels_HW: Labels, num_classes: int) -> list[ClassRuns]:
    """Runs of classes 1 to `num_classes`."""
    height, width = labels_HW.shape
    num_columns = max(1, BAND_PIXELS // height)
    bands = [
        _changes(labels_HW[:, left : left + num_columns], left)
        for left in range(0, width, num_columns)
    ]
    start_R, label_R = np.concatenate(bands, axis=1)
    end_R = np.append(start_R[1:], labels_HW.size)
    order_R = np.argsort(label_R, kind="stable")
    bounds = np.searchsorted(label_R[order_R], np.arange(1, num_classes + 2)).tolist()
    start_R, end_R = start_R[order_R], end_R[order_R]
    return [
        runs_of_one(start_R[begin:end], end_R[begin:end], (height, width))
        for begin, end in pairwise(bounds)
    ]


def _changes(labels_HW: Labels, left: int) -> Ints:
    """Where the labels of some columns change, counted from column 0 of the map, and to what."""
    flat = by_columns(labels_HW)
    start_R = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    return np.stack([start_R + left * len(labels_HW), flat[start_R]])


def compress_counts(counts: list[Ints]) -> list[str]:
    """Encode each list of counts as the string that pycocotools writes."""
    if not counts:
        return []
    lengths = np.array([len(numbers) for numbers in counts])
    value_N = np.concatenate([_differences(numbers) for numbers in counts])
    pieces: list[NDArray[np.uint8]] = []
    is_written: list[NDArray[np.bool_]] = []
    more_N = np.ones(len(value_N), np.bool_)
    while more_N.any():
        is_written.append(more_N)
        piece_N = value_N & 0x1F
        value_N = value_N >> BITS
        # The highest bit of the last group is the sign.
        more_N = more_N & (value_N != np.where(piece_N & 0x10, -1, 0))
        pieces.append((piece_N + 0x20 * more_N + FIRST_CHARACTER).astype(np.uint8))
    written_N = np.stack(is_written, axis=1)
    text = np.stack(pieces, axis=1)[written_N].tobytes().decode("ascii")
    characters_N = np.concatenate([[0], np.cumsum(written_N.sum(axis=1))])
    bounds = characters_N[np.concatenate([[0], np.cumsum(lengths)])].tolist()
    return [text[begin:end] for begin, end in pairwise(bounds)]


def read_counts(text: str) -> Ints:
    """Decode the string that `compress_counts` and pycocotools write.

    Raises:
        ValueError: The string is no such code.
    """
    code_C = np.frombuffer(text.encode("ascii", "replace"), np.uint8).astype(np.int64)
    code_C -= FIRST_CHARACTER
    is_last_C = (code_C & 0x20) == 0
    if not len(code_C) or code_C.min() < 0 or code_C.max() > 0x3F or not is_last_C[-1]:
        raise ValueError("the counts are not COCO's compressed run lengths")
    stop_N = np.flatnonzero(is_last_C) + 1
    start_N = np.concatenate([[0], stop_N[:-1]])
    length_N = stop_N - start_N
    if length_N.max() > MAX_GROUPS:
        raise ValueError("a run length is too large")
    shift_C = BITS * (np.arange(len(code_C)) - np.repeat(start_N, length_N))
    value_N = np.add.reduceat((code_C & 0x1F) << shift_C, start_N)
    value_N -= np.where(code_C[stop_N - 1] & 0x10, 1 << BITS * length_N, 0)
    # From the fourth on, a number is the difference from the one two before.
    value_N[1::2] = value_N[1::2].cumsum()
    value_N[2::2] = value_N[2::2].cumsum()
    if value_N.min() < 0:
        raise ValueError("a run length is negative")
    return value_N


def by_columns(labels_HW: Labels) -> Labels:
    """The label map flattened by columns."""
    if labels_HW.dtype == np.uint8:  # Pillow transposes in blocks, several times faster than NumPy
        turned = Image.fromarray(labels_HW).transpose(Image.Transpose.TRANSPOSE)
        return np.asarray(turned).ravel()
    return np.ascontiguousarray(labels_HW.T).ravel()


def runs_of_one(start_R: Ints, end_R: Ints, size_hw: tuple[int, int]) -> ClassRuns:
    """Runs of one class or instance, from where each begins and ends in the columns."""
    height, width = size_hw
    if not len(start_R):
        return ClassRuns(np.array([height * width]), 0, (0, 0, 0, 0))
    is_apart = start_R[1:] != end_R[:-1]
    start_R, end_R = start_R[np.append(True, is_apart)], end_R[np.append(is_apart, True)]
    edges = np.stack([start_R, end_R], axis=1).ravel()
    counts = np.diff(edges, prepend=0)
    if edges[-1] < height * width:
        counts = np.append(counts, height * width - edges[-1])
    left, right = start_R[0] // height, (end_R[-1] - 1) // height
    top_R, bottom_R = start_R % height, (end_R - 1) % height
    spans_columns = (start_R // height != (end_R - 1) // height).any()
    top, bottom = (0, height - 1) if spans_columns else (top_R.min(), bottom_R.max())
    box = int(left), int(top), int(right - left + 1), int(bottom - top + 1)
    return ClassRuns(counts, int((end_R - start_R).sum()), box)


def _differences(counts: Ints) -> Ints:
    """COCO writes numbers from the fourth on as differences from the one two before."""
    values = counts.copy()
    values[3:] -= counts[1:-2]
    return values
