"""Label maps to COCO's run-length encoding, the masks of all classes in one pass.

COCO counts pixels column by column: how many are not of the class, how many are, and so on.

Shapes: H W pixels, K classes, R runs, N numbers of all classes together.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.winner_map import Labels

Ints = NDArray[np.int64]

# A number is written in pieces of five bits, as characters from here on.
BITS: Final = 5
FIRST_CHARACTER: Final = 48


@dataclass(frozen=True, slots=True)
class ClassRuns:
    """Where one class is.

    Attributes:
        counts: Pixels outside, inside, outside ... in columns from left to right.
        area: Pixels inside.
        box: Left, top, width and height; all 0 where the class is nowhere.
    """

    counts: Ints
    area: int
    box: tuple[int, int, int, int]


def class_runs(labels_HW: Labels, num_classes: int) -> list[ClassRuns]:
    """The runs of classes 1 to `num_classes`."""
    height, width = labels_HW.shape
    flat = _columns(labels_HW)
    start_R = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    end_R = np.append(start_R[1:], flat.size)
    label_R = flat[start_R]
    order_R = np.argsort(label_R, kind="stable")
    bounds = np.searchsorted(label_R[order_R], np.arange(1, num_classes + 2)).tolist()
    start_R, end_R = start_R[order_R], end_R[order_R]
    return [
        _runs_of_one(start_R[begin:end], end_R[begin:end], (height, width))
        for begin, end in pairwise(bounds)
    ]


def compress_counts(counts: list[Ints]) -> list[str]:
    """Each list of counts as the string that pycocotools writes."""
    lengths = np.array([len(numbers) for numbers in counts])
    value_N = np.concatenate([_differences(numbers) for numbers in counts])
    pieces: list[NDArray[np.uint8]] = []
    is_written: list[NDArray[np.bool_]] = []
    more_N = np.ones(len(value_N), np.bool_)
    while more_N.any():
        is_written.append(more_N)
        piece_N = value_N & 0x1F
        value_N = value_N >> BITS
        # The highest bit of the last piece is the sign.
        more_N = more_N & (value_N != np.where(piece_N & 0x10, -1, 0))
        pieces.append((piece_N + 0x20 * more_N + FIRST_CHARACTER).astype(np.uint8))
    written_N = np.stack(is_written, axis=1)
    text = np.stack(pieces, axis=1)[written_N].tobytes().decode("ascii")
    characters_N = np.concatenate([[0], np.cumsum(written_N.sum(axis=1))])
    bounds = characters_N[np.concatenate([[0], np.cumsum(lengths)])].tolist()
    return [text[begin:end] for begin, end in pairwise(bounds)]


def _columns(labels_HW: Labels) -> Labels:
    """All columns, one after the other."""
    if labels_HW.dtype == np.uint8:  # Pillow turns it in blocks, several times faster
        turned = Image.fromarray(labels_HW).transpose(Image.Transpose.TRANSPOSE)
        return np.asarray(turned).ravel()
    return np.ascontiguousarray(labels_HW.T).ravel()


def _runs_of_one(start_R: Ints, end_R: Ints, size_hw: tuple[int, int]) -> ClassRuns:
    height, width = size_hw
    if not len(start_R):
        return ClassRuns(np.array([height * width]), 0, (0, 0, 0, 0))
    edges = np.stack([start_R, end_R], axis=1).ravel()
    counts = np.diff(edges, prepend=0)
    if edges[-1] < height * width:
        counts = np.append(counts, height * width - edges[-1])
    left, right = start_R[0] // height, (end_R[-1] - 1) // height
    top_R, bottom_R = start_R % height, (end_R - 1) % height
    goes_on = (start_R // height != (end_R - 1) // height).any()
    top, bottom = (0, height - 1) if goes_on else (top_R.min(), bottom_R.max())
    box = int(left), int(top), int(right - left + 1), int(bottom - top + 1)
    return ClassRuns(counts, int((end_R - start_R).sum()), box)


def _differences(counts: Ints) -> Ints:
    """From the fourth on, a number is told by its difference from the last but one."""
    values = counts.copy()
    values[3:] -= counts[1:-2]
    return values
