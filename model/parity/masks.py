"""Segmentation masks of the model in float32, and how much of them an export keeps.

Shapes: N patches, D width, K classes; H W pixels of the image, h w patch rows and columns.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.segmentation import cosine_map, segment, upsample_bilinear
from model.winner_map import Labels

FloatArray = NDArray[np.float32]
# Where the best two cosines are nearer than this, either class is as good an answer.
CLEAR_MARGIN = 0.01


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReferenceMask:
    """The mask of one image.

    Attributes:
        labels_HW: As segmentation answers them.
        clear_HW: Where the best cosine is `CLEAR_MARGIN` above the second.
    """

    labels_HW: Labels
    clear_HW: NDArray[np.bool_]


def reference_mask(
    features_ND: FloatArray,
    classes_KD: FloatArray,
    grid_hw: tuple[int, int],
    size_hw: tuple[int, int],
) -> ReferenceMask:
    """Segment an image and note where the answer is clear."""
    cosine_KHW = upsample_bilinear(cosine_map(features_ND, classes_KD, grid_hw), size_hw)
    second_HW, best_HW = np.partition(cosine_KHW, (-2, -1), axis=0)[-2:]
    return ReferenceMask(
        labels_HW=mask(features_ND, classes_KD, grid_hw, size_hw),
        clear_HW=best_HW - second_HW >= CLEAR_MARGIN,
    )


def mask(
    features_ND: FloatArray,
    classes_KD: FloatArray,
    grid_hw: tuple[int, int],
    size_hw: tuple[int, int],
) -> Labels:
    """Labels [H, W] by the code that answers requests."""
    return segment(features_ND, classes_KD, grid_hw=grid_hw, size_hw=size_hw).labels_HW


@dataclass(slots=True)
class Agreement:
    """Pixels with the same class, of all and of the clear ones."""

    pixels: int = 0
    same: int = 0
    clear: int = 0
    clear_same: int = 0

    def add(self, labels_HW: Labels, reference: ReferenceMask) -> None:
        """Count one mask."""
        same_HW = labels_HW == reference.labels_HW
        self.pixels += same_HW.size
        self.same += int(same_HW.sum())
        self.clear += int(reference.clear_HW.sum())
        self.clear_same += int((same_HW & reference.clear_HW).sum())

    @property
    def share(self) -> float | None:
        """Of all pixels; None where there are none."""
        return self.same / self.pixels if self.pixels else None

    @property
    def clear_share(self) -> float | None:
        """Of the clear pixels; None where there are none."""
        return self.clear_same / self.clear if self.clear else None
