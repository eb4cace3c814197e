"""Labels of pixels as a reduction, so that a device returns a mask instead of patches.

The graph does what `model.segmentation.segment` does, with the same matrices, for all classes at
all pixels: cosines, bilinear scaling, the threshold as one more class, the first highest value.

Shapes: N patches, D embedding width, K classes, H W pixels, h w patch rows and columns.
"""

import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, TypedDict

import numpy as np
from numpy.typing import NDArray

from model.graphs import PatchOutput
from model.reduction import Reduced, Reduction
from model.segmentation import (
    Background,
    SegmentationMap,
    bilinear_matrix,
    l2_normalize,
    segment,
)
from model.winner_map import count_labels

# Written by `model.export.pixel_labels`.
PIXEL_LABELS_FILE: Final = Path(__file__).with_name("pixel_labels.onnx")
# Outputs: uint8 labels, and float32 cosines of every patch with every class.
LABELS: Final = "labels_HW"
COSINES: Final = "cosine_NK"
# Device memory of one mask: values of 150 classes at 640 x 480 pixels take 186 MB.
MAX_BYTES: Final = 256 << 20
MAX_CLASSES: Final = 255
MAX_DIFFERENT: Final = 0.001
# No cosine is lower, so it never wins.
NO_FLOOR: Final = -2.0
# Most masks of a server have a few sizes; both matrices for 640 x 480 pixels take 143 kB.
known_matrix = lru_cache(16)(bilinear_matrix)


class Sizes(TypedDict):
    """Patch rows and columns, and height and width of a label map in pixels."""

    grid_hw: tuple[int, int]
    size_hw: tuple[int, int]


def pixel_labels(
    classes_KD: NDArray[np.float32],
    *,
    source: PatchOutput,
    grid_hw: tuple[int, int],
    size_hw: tuple[int, int],
    background: Background,
    with_cosines: bool = False,
) -> Reduction | None:
    """The labels that `segment` gives, in 8 bits, but for equal values within rounding.

    Args:
        classes_KD: As for `segment`.
        source: The patch output to label.
        grid_hw: Patch rows and columns.
        size_hw: Height and width of the label map, in pixels.
        background: What counts as background.
        with_cosines: Whether to return cosines too.

    Returns:
        None if labels need more than 8 bits, or the device too much memory.
    """
    num_classes = len(classes_KD)
    if num_classes > MAX_CLASSES or working_bytes(num_classes, grid_hw, size_hw) > MAX_BYTES:
        return None
    num_values = num_classes + 1
    label_V = np.zeros(num_values, np.uint8)
    num_labels = num_classes - background.num_classes
    label_V[:num_labels] = np.arange(1, num_labels + 1)
    floor = NO_FLOOR if background.threshold is None else background.threshold
    inputs: dict[str, NDArray[Any]] = {
        "classes_KD": l2_normalize(np.ascontiguousarray(classes_KD, np.float32)),
        "floor": np.array(floor, np.float32),
        "down_Hh": known_matrix(grid_hw[0], size_hw[0]),
        "across_Ww": known_matrix(grid_hw[1], size_hw[1]),
        "shape_hwV": np.array([*grid_hw, num_values], np.int64),
        "shape_HWV": np.array([*size_hw, num_values], np.int64),
        "label_V": label_V,
    }
    outputs = (LABELS, COSINES) if with_cosines else (LABELS,)
    return Reduction(source=source, graph=PIXEL_LABELS_FILE, inputs=inputs, outputs=outputs)


def labelled_map(reduced: Reduced, num_labels: int, grid_hw: tuple[int, int]) -> SegmentationMap:
    """What `segment` gives, of what the reduction gave.

    Args:
        reduced: Its outputs.
        num_labels: Classes without those of the background.
        grid_hw: Patch rows and columns.
    """
    labels_HW, cosine_NK = reduced[LABELS], reduced.get(COSINES)
    cosine_Khw = None
    if cosine_NK is not None:
        cosine_Khw = np.ascontiguousarray(cosine_NK.T).reshape(-1, *grid_hw)
    return SegmentationMap(
        labels_HW=labels_HW,
        counts=count_labels(labels_HW, num_labels + 1),
        score_HW=None,
        cosine_Khw=cosine_Khw,
    )


def working_bytes(num_classes: int, grid_hw: tuple[int, int], size_hw: tuple[int, int]) -> int:
    """Memory of values at pixels and patch rows, of winners and labels, and of the matrices."""
    num_pixels, num_wide = size_hw[0] * size_hw[1], grid_hw[0] * size_hw[1]
    num_weights = size_hw[0] * grid_hw[0] + size_hw[1] * grid_hw[1]
    return 4 * (num_classes + 1) * (num_pixels + num_wide) + 9 * num_pixels + 4 * num_weights


def objection(
    run: Callable[[Reduction, NDArray[np.float32]], Reduced], *, must_be_faster: bool
) -> str | None:
    """Why a device should not label pixels, as the end of a sentence; None if a trial goes well.

    Args:
        run: Runs a reduction on patches [N, D] of the host.
        must_be_faster: Whether it must take less time than `segment` on a thread of the CPU.
    """
    sizes: Sizes = {"grid_hw": (32, 32), "size_hw": (480, 640)}
    background = Background(threshold=0.05, num_classes=1)
    made = np.random.default_rng(0)
    patches_ND, classes_KD = (made.standard_normal((n, 768), np.float32) for n in (1024, 22))
    reduction = pixel_labels(classes_KD, source="values", background=background, **sizes)
    assert reduction is not None
    began = time.perf_counter()
    expected = segment(patches_ND, classes_KD, background=background, **sizes)
    host_s = time.perf_counter() - began
    is_different_HW = run(reduction, patches_ND)[LABELS] != expected.labels_HW
    # Rounding may decide otherwise where two values are equal; nothing else may differ.
    if float(is_different_HW.mean()) >= MAX_DIFFERENT:
        return "its labels of a trial differ from those of the CPU"
    began = time.perf_counter()
    run(reduction, patches_ND)  # the first time, a device loads its kernels
    device_s = time.perf_counter() - began
    if must_be_faster and device_s > host_s:
        return f"a trial took {1e3 * device_s:.1f} ms there, and {1e3 * host_s:.1f} ms on the CPU"
    return None
