"""Brings pretrained features to the width of a small model: principal components, half whitened.

Shapes: ... any leading sizes, M samples, F the features' width, K the reduced width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Basis:
    """Where features lie and along which axes they vary.

    Attributes:
        mean_F: float32; what is subtracted.
        axes_FK: float32; the leading principal axes, each divided by the root of the samples'
            spread along it, so that large directions stay larger, but not by as much.
    """

    mean_F: Tensor
    axes_FK: Tensor

    def reduce(self, features_F: Tensor) -> Tensor:
        """Bring features [..., F] to [..., K]."""
        reduced_K: Tensor = (features_F - self.mean_F) @ self.axes_FK
        return reduced_K


def fit_basis(features_MF: Tensor, width: int) -> Basis:
    """Fit the axes to samples.

    Args:
        features_MF: float32; at least as many rows as `width`.
        width: K.

    Raises:
        ValueError: There are too few samples or features for so many axes.
    """
    if min(features_MF.shape) < width:
        raise ValueError(f"{width} axes need as many samples and features, not {features_MF.shape}")
    mean_F = features_MF.mean(0)
    _, spread, axes = torch.linalg.svd(features_MF - mean_F, full_matrices=False)
    scale_K = spread[:width].clamp(min=1e-6).rsqrt()
    return Basis(mean_F=mean_F, axes_FK=axes[:width].T * scale_K)
