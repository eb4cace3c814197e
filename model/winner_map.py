"""Find the best class of every pixel of upsampled maps without values of classes x pixels.

A class that is best at all four corners of a tile wins the whole tile. In other tiles, a class
whose highest corner is below another's lowest cannot win and is skipped. Exact up to float32
rounding.

Shapes: h w patch rows and columns, K classes; A B corners down and across, X all of them; T tiles
that are evaluated, C the candidates of all of them, P pixels of a tile in raster order; H W pixels.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.tiles import Axis, Floats, Ints, Tiles, cut_axis, tile_side

Labels = NDArray[np.unsignedinteger]  # uint8 or uint16

# Values in memory at a time, corners x classes or tiles x pixels: 4 MiB of float32.
BAND_ELEMENTS: Final = 1024 * 1024
COUNTED_AT_ONCE: Final = 1024 * 1024


@dataclass(frozen=True, slots=True, eq=False)
class WinnerMap:
    """The best class of every pixel, filled tile by tile.

    Attributes:
        labels_HW: k for the k-th class from 1, the first of equal ones; uint8 or uint16.
        score_HW: Value of the best class; None if not requested.
        counts: Pixels of each label, from 0.
    """

    labels_HW: Labels
    score_HW: Floats | None
    counts: NDArray[np.int64]

    @classmethod
    def empty(cls, num_classes: int, size_hw: tuple[int, int], *, with_scores: bool) -> "WinnerMap":
        """An uninitialised map of this size."""
        labels_HW: Labels = np.empty(size_hw, np.uint8 if num_classes < 256 else np.uint16)
        return cls(
            labels_HW=labels_HW,
            score_HW=np.empty(size_hw, np.float32) if with_scores else None,
            counts=np.zeros(num_classes + 1, np.int64),
        )

    def count(self, labels: NDArray[np.integer], pixels: NDArray[np.integer]) -> None:
        """Add to the number of pixels of each label."""
        sums = np.bincount(labels.ravel(), pixels.ravel(), len(self.counts))
        self.counts[:] += sums.astype(np.int64)


def count_labels(labels_HW: Labels, num_labels: int) -> NDArray[np.int64]:
    """Pixels of each label, in bands: NumPy counts a copy in 64 bits.

    Labels of 8 bits are counted by Pillow, in a quarter of the time.
    """
    flat = labels_HW.reshape(-1)
    counts = np.zeros(num_labels, np.int64)
    for begin in range(0, flat.size, COUNTED_AT_ONCE):
        part = flat[begin : begin + COUNTED_AT_ONCE]
        if part.dtype == np.uint8:
            found = Image.fromarray(part[None]).histogram()[:num_labels]
            counts[: len(found)] += found
        else:
            counts += np.bincount(part, minlength=num_labels)
    return counts


def find_winners(
    value_hwK: Floats,
    size_hw: tuple[int, int],
    *,
    with_scores: bool = False,
    floor_K: Floats | None = None,
) -> WinnerMap:
    """Upsample maps bilinearly, as `upsample_bilinear` does, and keep the best class.

    Args:
        value_hwK: Value of every class at every patch centre.
        size_hw: Height and width in pixels.
        with_scores: Whether to return the best value of every pixel.
        floor_K: A pixel whose best class has a lower value than this has the label 0.
    """
    num_rows, num_columns, num_classes = value_hwK.shape
    side = tile_side(max(size_hw), num_classes)
    down, across = cut_axis(num_rows, size_hw[0], side), cut_axis(num_columns, size_hw[1], side)
    found = WinnerMap.empty(num_classes, size_hw, with_scores=with_scores)
    wide_AwK = down.at_corners(value_hwK.reshape(num_rows, -1)).reshape(-1, *value_hwK.shape[1:])
    tile_pixels = int(down.sides.max() * across.sides.max())
    band = max(1, BAND_ELEMENTS // (len(across.first_A) * max(num_classes, tile_pixels)))
    for top in range(0, len(wide_AwK) - 1, band):
        value_ABK = across.at_corners(wide_AwK[top : top + band + 1])
        _paint(value_ABK, down.part(top, band), across, found, floor_K=floor_K)
    return found


def _paint(
    value_ABK: Floats, down: Axis, across: Axis, found: WinnerMap, *, floor_K: Floats | None
) -> None:
    winner_AB = value_ABK.argmax(axis=-1)
    if floor_K is not None:
        # Below its floor a winner counts as a class of its own.
        best_AB = np.take_along_axis(value_ABK, winner_AB[..., None], axis=-1)[..., 0]
        winner_AB[best_AB < floor_K[winner_AB]] -= len(floor_K)
    first = winner_AB[:-1, :-1]
    is_whole = (first == winner_AB[:-1, 1:]) & (first == winner_AB[1:, :-1])
    is_whole &= first == winner_AB[1:, 1:]
    label = np.maximum(first + 1, 0)
    painted = np.repeat(label.astype(found.labels_HW.dtype), across.sides, axis=1)
    rows = slice(down.first_A[0], down.first_A[-1])
    found.labels_HW[rows] = np.repeat(painted, down.sides, axis=0)
    pixels = down.sides[:, None] * across.sides
    is_open = pixels > 0
    if found.score_HW is None:
        is_open &= ~is_whole
    found.count(label, np.where(is_open, 0, pixels))
    index_2T = np.stack(np.divmod(np.flatnonzero(is_open), is_open.shape[1]))
    if index_2T.size:
        tiles = Tiles.at(index_2T, down, across)
        corner_4T = tiles.corner_indices(winner_AB.shape[1])
        value_XK = value_ABK.reshape(-1, value_ABK.shape[2])
        tile_C, class_C = _candidates(value_XK, corner_4T)
        plane_C4 = tiles.planes(value_XK[corner_4T[:, tile_C], class_C], tile_C)
        _Contest.between(tiles, tile_C, class_C, plane_C4).fill(found, floor_K)


def _candidates(value_XK: Floats, corner_4T: Ints) -> tuple[Ints, Ints]:
    """Tile and class of each class that may win a pixel, ordered by tile, then class."""
    lowest_TK = value_XK[corner_4T[0]]
    highest_TK = lowest_TK.copy()
    for corner_T in corner_4T[1:]:
        value_TK = value_XK[corner_T]
        np.minimum(lowest_TK, value_TK, out=lowest_TK)
        np.maximum(highest_TK, value_TK, out=highest_TK)
    place_C = np.flatnonzero(highest_TK >= lowest_TK.max(axis=1, keepdims=True))
    tile_C, class_C = np.divmod(place_C, value_XK.shape[1])
    return tile_C, class_C


@dataclass(frozen=True, slots=True, eq=False)
class _Contest:
    """Candidates of tiles without a single winner; tiles are in descending order of their number.

    Attributes:
        begin_T: Index of each tile's first candidate.
        num_tiles: The first num_tiles[j] tiles have more than j candidates.
        class_C: Class of each candidate, ascending in each tile.
        plane_C4: Values of each candidate; see `Tiles.planes`.
    """

    tiles: Tiles
    begin_T: Ints
    num_tiles: list[int]
    class_C: Ints
    plane_C4: Floats

    @classmethod
    def between(cls, tiles: Tiles, tile_C: Ints, class_C: Ints, plane_C4: Floats) -> "_Contest":
        """Sort tiles by their number of candidates, which are given tile by tile."""
        count_T = np.bincount(tile_C, minlength=len(tiles))
        begin_T = np.cumsum(count_T) - count_T
        order_T = np.argsort(-count_T, kind="stable")
        ranks = np.arange(1, count_T.max() + 1)
        num_tiles = np.searchsorted(-count_T[order_T], -ranks, side="right").tolist()
        return cls(tiles.take(order_T), begin_T[order_T], num_tiles, class_C, plane_C4)

    def fill(self, found: WinnerMap, floor_K: Floats | None) -> None:
        """Write labels, scores and counts of the tiles."""
        height, width = self.tiles.side_2T.max(axis=1).tolist()
        y_P, x_P = np.divmod(np.arange(height * width, dtype=np.float32), np.float32(width))
        label_C: Labels = (self.class_C + 1).astype(found.labels_HW.dtype)
        basis_4P = np.stack([np.ones_like(x_P), x_P, y_P, x_P * y_P])
        label_TP, best_TP = self._compete(label_C, basis_4P)
        side_2T1 = self.tiles.side_2T[:, :, None].astype(np.float32)
        is_inside_TP = (y_P < side_2T1[0]) & (x_P < side_2T1[1])
        if floor_K is not None:
            label_TP[best_TP < floor_K.take(label_TP - 1)] = 0
            found.counts[0] += np.count_nonzero(is_inside_TP & (label_TP == 0))
        self._count(label_C, label_TP, is_inside_TP, found)
        self.tiles.write(label_TP.reshape(-1, height, width), found.labels_HW)
        if found.score_HW is not None:
            self.tiles.write(best_TP.reshape(-1, height, width), found.score_HW)

    def _compete(self, label_C: Labels, basis_4P: Floats) -> tuple[Labels, Floats]:
        """Label and value of the best candidate; a step compares the j-th of all tiles."""
        best_TP: Floats = self.plane_C4[self.begin_T] @ basis_4P
        label_TP: Labels = np.empty(best_TP.shape, label_C.dtype)
        label_TP[:] = label_C[self.begin_T][:, None]
        for j, num in enumerate(self.num_tiles[1:], start=1):
            pick = self.begin_T[:num] + j
            value_TP = self.plane_C4[pick] @ basis_4P
            is_better_TP = value_TP > best_TP[:num]
            np.maximum(best_TP[:num], value_TP, out=best_TP[:num])
            # In wrapping integers the same as `np.where`, and several times faster.
            change_TP: Labels = label_C[pick][:, None] - label_TP[:num]
            change_TP *= is_better_TP.view(np.uint8)
            label_TP[:num] += change_TP
        return label_TP, best_TP

    def _count(
        self, label_C: Labels, label_TP: Labels, is_inside_TP: NDArray[np.bool_], found: WinnerMap
    ) -> None:
        pixels: list[NDArray[np.uint16]] = []
        labels: list[Labels] = []
        for j, num in enumerate(self.num_tiles):
            labels.append(label_C[self.begin_T[:num] + j])
            is_won_TP = label_TP[:num] == labels[-1][:, None]
            is_won_TP &= is_inside_TP[:num]
            pixels.append(np.add.reduce(is_won_TP, axis=1, dtype=np.uint16))
        found.count(np.concatenate(labels), np.concatenate(pixels))
