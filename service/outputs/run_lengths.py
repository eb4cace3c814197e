"""Runs of a label map within its columns, and COCO's run lengths.

COCO counts pixels column by column, outside and inside of a class in turn. All classes are read in
one pass, several times faster than by pycocotools.

Shape legend: H W pixels, R runs, N numbers of all classes, C characters.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.winner_map import Labels

Ints = NDArray[np.int64]
# Pixels whose runs are found at once.
BAND_PIXELS: Final = 1024 * 1024
# A number is written in groups of five bits, each as one character from "0" on.
BITS: Final = 5
FIRST_CHARACTER: Final = 48
# Of one number: 35 bits.
MAX_GROUPS: Final = 7


@dataclass(frozen=True, slots=True, eq=False)
class Runs:
    """Pixels of one label that follow each other within a column, by column, then from the top.

    Attributes:
        label_R: Label, from 1.
        x_R: Column.
        top_R: First row.
        stop_R: Row after the last one.
    """

    label_R: Ints
    x_R: Ints
    top_R: Ints
    stop_R: Ints

    @classmethod
    def of(cls, labels_HW: Labels) -> Self:
        """Find the runs of all labels except 0, in bands, so that a large map takes few bytes."""
        height, width = labels_HW.shape
        num_columns = max(1, BAND_PIXELS // height)
        bands = [
            _runs(labels_HW[:, left : left + num_columns], left)
            for left in range(0, width, num_columns)
        ]
        return cls(*np.concatenate(bands, axis=1))

    @property
    def num_pixels(self) -> Ints:
        """Number of pixels of each run, [R]."""
        return self.stop_R - self.top_R

    def outline(self, own_R: NDArray[np.intp], size_hw: tuple[int, int]) -> "RunLengths":
        """COCO's counts of some runs, which are in ascending order."""
        height, width = size_hw
        if not len(own_R):
            return RunLengths(np.array([height * width]), 0, (0, 0, 0, 0))
        x_R, top_R, stop_R = self.x_R[own_R], self.top_R[own_R], self.stop_R[own_R]
        start_R, end_R = x_R * height + top_R, x_R * height + stop_R
        is_apart = start_R[1:] != end_R[:-1]  # else a run goes on in the next column
        edges = np.stack([start_R[np.append(True, is_apart)], end_R[np.append(is_apart, True)]])
        counts = np.diff(edges.T.ravel(), prepend=0)
        if end_R[-1] < height * width:
            counts = np.append(counts, height * width - end_R[-1])
        left, top = int(x_R[0]), int(top_R.min())
        box = left, top, int(x_R[-1]) - left + 1, int(stop_R.max()) - top
        return RunLengths(counts, int((end_R - start_R).sum()), box)


@dataclass(frozen=True, slots=True)
class RunLengths:
    """Pixels of one class or instance.

    Attributes:
        counts: Lengths of runs outside, inside, outside ... in columns from left to right.
        area: Number of pixels.
        box: Left, top, width and height; all 0 if there is no pixel.
    """

    counts: Ints
    area: int
    box: tuple[int, int, int, int]


def _runs(labels_HW: Labels, left: int) -> Ints:
    """Label, column, first row and row after the last of each run."""
    height = len(labels_HW)
    flat = _by_columns(labels_HW)
    is_start = np.empty(flat.size, np.bool_)
    np.not_equal(flat[1:], flat[:-1], out=is_start[1:])
    is_start[::height] = True
    start_R = np.flatnonzero(is_start)
    stop_R = np.append(start_R[1:], flat.size)
    is_class = flat[start_R] > 0
    start_R, stop_R = start_R[is_class], stop_R[is_class]
    x_R, top_R = np.divmod(start_R, height)
    return np.stack([flat[start_R].astype(np.int64), x_R + left, top_R, stop_R - x_R * height])


def _by_columns(labels_HW: Labels) -> Labels:
    """The label map flattened by columns."""
    if labels_HW.dtype == np.uint8:  # Pillow transposes in blocks, several times faster than NumPy
        turned = Image.fromarray(labels_HW).transpose(Image.Transpose.TRANSPOSE)
        return np.asarray(turned).ravel()
    return np.ascontiguousarray(labels_HW.T).ravel()


def class_runs(labels_HW: Labels, num_classes: int) -> list[RunLengths]:
    """Run lengths of classes 1 to `num_classes`."""
    runs = Runs.of(labels_HW)
    order_R = np.argsort(runs.label_R, kind="stable")
    bounds = np.searchsorted(runs.label_R[order_R], np.arange(1, num_classes + 2)).tolist()
    return [runs.outline(order_R[begin:end], labels_HW.shape) for begin, end in pairwise(bounds)]


def compress_counts(counts: list[Ints]) -> list[str]:
    """Encode each list of counts as the string that pycocotools writes."""
    if not counts:
        return []
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
    characters_N = np.cumsum([0, *written_N.sum(axis=1)])
    bounds = characters_N[np.cumsum([0, *map(len, counts)])].tolist()
    return [text[begin:end] for begin, end in pairwise(bounds)]


def _differences(counts: Ints) -> Ints:
    """COCO writes numbers from the fourth on as differences from the one two before."""
    values = counts.copy()
    values[3:] -= counts[1:-2]
    return values


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
