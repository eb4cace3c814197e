"""Losses of maps: depth, by the logarithm and its gradients, and normals, by the angle.

Shapes: B batch, H W pixels. Depth is in metres; a true depth of 0 and a true normal of 0 do not
count.
"""

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

# How much the mean error of a batch counts beside the variance: 0 would leave the scale open.
SCALE_WEIGHT: Final = 0.15
NUM_GRADIENT_SCALES: Final = 4
_EPSILON: Final = 1e-8


def scale_invariant_log_loss(depth_BHW: Tensor, truth_BHW: Tensor) -> Tensor:
    """Root of the variance of the logarithmic error plus a part of its squared mean: a scalar.

    Source: Eigen et al., arXiv:1406.2283, equation 4, in the form of AdaBins (arXiv:2011.14141)
    that DINOv2's evaluation uses.
    """
    error_P = (depth_BHW.log() - truth_BHW.clamp(min=_EPSILON).log())[truth_BHW > 0]
    return (error_P.var() + SCALE_WEIGHT * error_P.mean().square() + _EPSILON).sqrt()


def depth_gradient_loss(depth_BHW: Tensor, truth_BHW: Tensor) -> Tensor:
    """Mean difference of the logarithmic error between neighbours, summed over scales: a scalar.

    It makes edges sharp.

    Source: MegaDepth, arXiv:1804.00607, equation 3, as in DINOv2's evaluation.
    """
    counts_BHW = truth_BHW > 0
    error_BHW = torch.where(counts_BHW, depth_BHW.log() - truth_BHW.clamp(min=_EPSILON).log(), 0.0)
    total = error_BHW.new_zeros(())
    for scale in range(NUM_GRADIENT_SCALES):
        step = 2**scale
        small, counts = error_BHW[:, ::step, ::step], counts_BHW[:, ::step, ::step]
        for axis in (1, 2):
            rest = small.shape[axis] - 1
            both = counts.narrow(axis, 0, rest) & counts.narrow(axis, 1, rest)
            total = total + (small.diff(dim=axis).abs() * both).sum() / both.sum().clamp(min=1)
    return total


# The gradient of the arc cosine is infinite at 1; below 0.8 degrees an error has none.
_LARGEST_COSINE: Final = 1 - 1e-4


def angular_loss(normals_B3HW: Tensor, truth_B3HW: Tensor) -> Tensor:
    """Mean angle in radians: a scalar.

    Args:
        normals_B3HW: Vectors of any length.
        truth_B3HW: Unit vectors; zero where there is none.

    Source: the plain angular loss that Bae et al., arXiv:2109.09881, section 3.2, start from.
    """
    cosine_BHW = (F.normalize(normals_B3HW, dim=1) * truth_B3HW).sum(dim=1)
    counts_BHW = truth_B3HW.any(dim=1)
    limited_P = cosine_BHW[counts_BHW].clamp(-_LARGEST_COSINE, _LARGEST_COSINE)
    return limited_P.arccos().mean()
