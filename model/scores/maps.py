"""Errors of depth and normals at pixels.

Shapes: P pixels.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


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
