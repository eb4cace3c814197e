"""A z-buffer in NumPy: which triangle each pixel shows, and how far away it is.

The camera is at the origin; x points right, y down, z forward. Pixel centres are at integers plus a
half.

Shapes: T triangles, S side of the image in pixels, P covered pixels.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

NEAR_M: Final = 0.05
# Pixels and triangles that are compared at a time; with 2**20 a room took 1.4 times the CPU time.
_CANDIDATES: Final = 2**16
_EMPTY_AREA: Final = 1e-9

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Camera:
    """A pinhole camera: focal length in pixels, side of the square image in pixels."""

    focal: float
    side: int

    def rays(self) -> Floats:
        """Directions through the pixels [S, S, 3], with z = 1."""
        line_S = ((np.arange(self.side) + 0.5 - self.side / 2) / self.focal).astype(np.float32)
        x_SS, y_SS = np.meshgrid(line_S, line_S)
        return np.stack((x_SS, y_SS, np.ones_like(x_SS)), axis=-1)


@dataclass(frozen=True, slots=True, eq=False)
class Hits:
    """The triangle that each covered pixel shows, its z in metres, and the corners' weights.

    Pixels are in row-major order; the weights are barycentric, corrected for perspective.
    """

    pixel_P: NDArray[np.int64]
    triangle_P: NDArray[np.int64]
    depth_P: Floats
    weights_P3: Floats


def rasterise(corners_T33: Floats, camera: Camera) -> Hits:
    """Find the nearest triangle at each pixel; pixels without one are left out.

    Args:
        corners_T33: Triangle, corner, coordinate, in metres. One that reaches behind `NEAR_M` is
            left out whole.
        camera: The camera.
    """
    depth_N = np.full(camera.side**2, np.inf)
    triangle_N = np.full(camera.side**2, -1, np.int64)
    inverse_T33, fitting_T = _edges(corners_T33, camera)
    low_T2, extent_T = _boxes(corners_T33, fitting_T, camera)
    for rows, size in _chunks(extent_T):
        pixel_P, weights_P3, row_P = _covered(
            rows, size, low_T2=low_T2, inverse_T33=inverse_T33, side=camera.side
        )
        depth_P = 1 / weights_P3.sum(-1)  # weights by corner / z
        np.minimum.at(depth_N, pixel_P, depth_P)
        is_nearest_P = depth_P == depth_N[pixel_P]
        triangle_N[pixel_P[is_nearest_P]] = row_P[is_nearest_P]
    pixel_P = np.flatnonzero(triangle_N >= 0)
    triangle_P = triangle_N[pixel_P]
    weights_P3 = np.einsum("pij,pj->pi", inverse_T33[triangle_P], _centres(pixel_P, camera.side))
    weights_P3 /= weights_P3.sum(-1, keepdims=True)
    depth_P = depth_N[pixel_P].astype(np.float32)
    return Hits(pixel_P, triangle_P, depth_P, weights_P3.astype(np.float32))


def _centres(pixel_P: NDArray[np.int64], side: int) -> Doubles:
    """Homogeneous image coordinates [P, 3] of pixel centres."""
    rows_P, columns_P = np.divmod(pixel_P, side)
    return np.stack((columns_P + 0.5, rows_P + 0.5, np.ones(len(pixel_P))), axis=-1)


def _edges(corners_T33: Floats, camera: Camera) -> tuple[Doubles, NDArray[np.bool_]]:
    """Matrices [T, 3, 3] from a pixel to each corner's weight by its z; and which are in front.

    The columns of a triangle's matrix are its projected corners (z u, z v, z), so the inverse gives
    weights whose sum is 1 / z at the pixel.

    Source: Olano and Greer, "Triangle scan conversion using 2D homogeneous coordinates", 1997.
    """
    z_T3 = corners_T33[..., 2]
    half = camera.side / 2
    projected_T33 = np.empty(corners_T33.shape, np.float64)
    projected_T33[..., :2] = corners_T33[..., :2] * camera.focal + half * z_T3[..., None]
    projected_T33[..., 2] = z_T3
    columns_T33 = projected_T33.transpose(0, 2, 1)
    determinant_T = np.linalg.det(columns_T33)
    fitting_T = (z_T3.min(axis=1, initial=np.inf) > NEAR_M) & (np.abs(determinant_T) > _EMPTY_AREA)
    safe_T33 = np.where(fitting_T[:, None, None], columns_T33, np.eye(3))
    return np.linalg.inv(safe_T33), fitting_T


def _boxes(
    corners_T33: Floats, fitting_T: NDArray[np.bool_], camera: Camera
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First pixel (column, row) of each triangle's box, and its larger extent; 0 for none."""
    z_T31 = np.maximum(corners_T33[..., 2:], NEAR_M)
    points_T32 = corners_T33[..., :2] / z_T31 * camera.focal + camera.side / 2
    low_T2 = np.ceil(np.clip(points_T32.min(axis=1) - 0.5, 0, camera.side)).astype(np.int64)
    high_T2 = np.floor(np.clip(points_T32.max(axis=1) - 0.5, -1, camera.side - 1)).astype(np.int64)
    extent_T = (high_T2 - low_T2 + 1).max(axis=1, initial=0)
    is_seen_T = fitting_T & (high_T2 >= low_T2).all(axis=1)
    return low_T2, np.where(is_seen_T, extent_T, 0)


def _chunks(extent_T: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], int]]:
    """Triangles of similar extents, and the side of a square that holds each."""
    size = 1
    while (extent_T >= size).any():
        rows = np.flatnonzero((extent_T >= size) & (extent_T < 2 * size))
        side = 2 * size - 1
        step = max(1, _CANDIDATES // side**2)
        for first in range(0, len(rows), step):
            yield rows[first : first + step], side
        size *= 2


def _covered(
    rows: NDArray[np.int64],
    size: int,
    *,
    low_T2: NDArray[np.int64],
    inverse_T33: Doubles,
    side: int,
) -> tuple[NDArray[np.int64], Doubles, NDArray[np.int64]]:
    """Covered pixels of some triangles, the corners' weights by z, and the triangles."""
    down_K, right_K = np.divmod(np.arange(size**2), size)
    x_RK, y_RK = low_T2[rows, :1] + right_K, low_T2[rows, 1:] + down_K
    edges_R33 = inverse_T33[rows]
    weights_R3K = (
        edges_R33[:, :, :1] * (x_RK[:, None] + 0.5)
        + edges_R33[:, :, 1:2] * (y_RK[:, None] + 0.5)
        + edges_R33[:, :, 2:]
    )
    inside_RK = (weights_R3K >= 0).all(axis=1) & (x_RK < side) & (y_RK < side)
    row, place = np.nonzero(inside_RK)
    weights_P3 = weights_R3K.transpose(0, 2, 1)[row, place]
    return y_RK[row, place] * side + x_RK[row, place], weights_P3, rows[row]
