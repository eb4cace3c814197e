"""The angle between surface normals as a loss.

Shapes: B batch, H W pixels.
"""

from typing import Final

from torch import Tensor
from torch.nn import functional as F

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
