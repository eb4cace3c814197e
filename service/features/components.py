"""Principal components of patch embeddings, as scikit-learn's `PCA(whiten=True)` has them.

Shape legend: N patches, D width, C components.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from service.messages import FloatArray

# Of the greatest variance: below it there is nothing but rounding, which must not be blown up.
LEAST_VARIANCE: Final = 1e-10


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Components:
    """Axes through the mean of patches; `axes_DC` are unit vectors over the deviation there."""

    mean_D: FloatArray
    axes_DC: FloatArray

    def project(self, features_ND: FloatArray) -> FloatArray:
        """Whitened coordinates [N, C]: mean 0 and deviation 1 over the patches of the fit."""
        projected_NC = (features_ND - self.mean_D) @ self.axes_DC
        return projected_NC.astype(np.float32, copy=False)


def fit_components(features_ND: FloatArray, count: int) -> Components:
    """The axes along which patches differ most; where they differ along fewer, the rest is zero.

    An axis points to where its largest weight is positive, so the same patches give the same axes.
    """
    exact_ND = features_ND.astype(np.float64)
    mean_D: NDArray[np.float64] = exact_ND.mean(axis=0)
    centred_ND = exact_ND - mean_D
    num_patches, width = centred_ND.shape
    # The smaller of the two square matrices has the same eigenvalues.
    is_wide = num_patches < width
    square = centred_ND @ centred_ND.T if is_wide else centred_ND.T @ centred_ND
    values, vectors = np.linalg.eigh(square)
    variances = values[::-1][:count] / max(num_patches - 1, 1)
    axes_DC = np.zeros((width, count))
    for index, variance in enumerate(variances):
        if variance <= LEAST_VARIANCE * variances[0] or variance <= 0:
            break
        axis_D = vectors[:, -1 - index]
        axis_D = centred_ND.T @ axis_D if is_wide else axis_D
        axis_D = axis_D / np.linalg.norm(axis_D) * np.sign(axis_D[np.abs(axis_D).argmax()])
        axes_DC[:, index] = axis_D / np.sqrt(variance)
    return Components(mean_D=_float32(mean_D), axes_DC=_float32(axes_DC))


def _float32(array: NDArray[np.float64]) -> FloatArray:
    return array.astype(np.float32)
