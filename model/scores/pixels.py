"""Classes of pixels, counted in each image, and errors of depth and normals at pixels.

Shapes: R resamples of the images, S images, K classes, H W pixels, P pixels that count.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

# Classes of pixels, beside those from 0: one that does not count, and the background of objects.
NO_CLASS: Final = -1
BACKGROUND: Final = -2
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pixels:
    """Pixels of each image by class, but those of no class: hits, true and predicted ones."""

    hit_SK: Floats
    truth_SK: Floats
    called_SK: Floats

    @classmethod
    def of(cls, tables: Sequence[NDArray[np.int64]]) -> Self:
        """Those of images, from what `count_pixels` counts in each [3, K]."""
        counts_S3K = np.stack(tables).astype(np.float64)
        return cls(hit_SK=counts_S3K[:, 0], truth_SK=counts_S3K[:, 1], called_SK=counts_S3K[:, 2])

    def __len__(self) -> int:
        return len(self.hit_SK)

    def iou(self, weights_RS: Floats) -> Floats:
        """Intersection over union of each class in percent [R, K]; NaN without a pixel."""
        hit_RK, truth_RK, called_RK = (
            weights_RS @ table for table in (self.hit_SK, self.truth_SK, self.called_SK)
        )
        union_RK = truth_RK + called_RK - hit_RK
        iou_RK: Floats = np.where(union_RK > 0, 100 * hit_RK / (union_RK + 1e-10), np.nan)
        return iou_RK

    def miou(self, weights_RS: Floats) -> Floats:
        """Mean over the classes that some image shows or is predicted to show [R].

        Source: google-deepmind/tips, zero-shot segmentation notebook.
        """
        iou_RK = self.iou(weights_RS)
        has_pixels_RK = np.isfinite(iou_RK)
        # A resample of few images may have no labelled pixel at all.
        num_classes_R = np.maximum(has_pixels_RK.sum(1), 1)
        values_R: Floats = iou_RK.sum(1, where=has_pixels_RK) / num_classes_R
        return values_R

    def accuracy(self, weights_RS: Floats) -> Floats:
        """Percent of the pixels that are right [R]."""
        num_pixels_R = np.maximum(weights_RS @ self.truth_SK.sum(1), 1)
        values_R: Floats = 100 * (weights_RS @ self.hit_SK.sum(1)) / num_pixels_R
        return values_R


def count_pixels(
    truth_HW: NDArray[np.int64], called_HW: NDArray[np.int64], num_classes: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pixels by true and predicted class [K, K]; and hits, true and predicted pixels [3, K].

    Pixels whose true class is -1 do not count. A predicted -1 is an error of its true class only.
    """
    counted_HW = truth_HW >= 0
    truth_P, called_P = truth_HW[counted_HW], called_HW[counted_HW]
    has_class_P = called_P >= 0
    cells_P = truth_P[has_class_P] * num_classes + called_P[has_class_P]
    table_KK = np.bincount(cells_P, minlength=num_classes**2).reshape(num_classes, num_classes)
    truth_K = np.bincount(truth_P, minlength=num_classes)
    return table_KK, np.stack([table_KK.diagonal(), truth_K, table_KK.sum(0)])


def depth_scores(depth_P: Floats, truth_P: Floats) -> tuple[float, float, float, int]:
    """RMSE, relative error, share within a factor of 1.25, and 1; zeros without a pixel."""
    if not len(truth_P):
        return 0.0, 0.0, 0.0, 0
    error_P = depth_P - truth_P
    is_near_P = (depth_P < 1.25 * truth_P) & (truth_P < 1.25 * depth_P)
    return (
        float(np.sqrt(np.square(error_P).mean())),
        float((np.abs(error_P) / truth_P).mean()),
        float(is_near_P.mean()),
        1,
    )


def angles(normals_P3: Floats, truth_P3: Floats) -> Floats:
    """Degrees between vectors; exact for small angles. A zero vector is at 90 degrees."""
    cosine_P = (normals_P3 * truth_P3).sum(-1)
    sine_P = np.linalg.norm(np.cross(normals_P3, truth_P3), axis=-1)
    is_zero_P = ~normals_P3.any(-1)
    angle_P: Floats = np.where(is_zero_P, 90.0, np.degrees(np.arctan2(sine_P, cosine_P)))
    return angle_P
