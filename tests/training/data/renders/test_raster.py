"""The z-buffer against a straight-line loop over pixels and triangles, and against a plane."""

import numpy as np
import pytest

from training.data.renders import raster
from training.data.renders.raster import NEAR_M, Camera, rasterise

CAMERA = Camera(focal=20.0, side=24)


def looped(corners_T33: np.ndarray, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Depth and triangle of each pixel by rays: Moeller and Trumbore's intersection."""
    rays = camera.rays().reshape(-1, 3).astype(np.float64)
    depth_N, triangle_N = np.full(len(rays), np.inf), np.full(len(rays), -1)
    for number, (a, b, c) in enumerate(corners_T33.astype(np.float64)):
        for pixel, ray in enumerate(rays):
            across = np.cross(ray, c - a)
            determinant = (b - a) @ across
            u = -(a @ across) / determinant
            turned = np.cross(-a, b - a)
            v, depth = ray @ turned / determinant, (c - a) @ turned / determinant
            if u >= 0 and v >= 0 and u + v <= 1 and NEAR_M < depth < depth_N[pixel]:
                depth_N[pixel], triangle_N[pixel] = depth, number
    return depth_N, triangle_N


@pytest.fixture
def triangles() -> np.ndarray:
    """Triangles of all sizes and directions in front of the camera, many of them overlapping."""
    rng = np.random.default_rng(0)
    centres = rng.uniform((-1, -1, 1), (1, 1, 4), (60, 1, 3))
    spread = rng.choice((0.02, 0.2, 1.0), (60, 1, 1))
    corners = centres + spread * rng.normal(size=(60, 3, 3))
    return np.maximum(corners, (-np.inf, -np.inf, 0.2)).astype(np.float32)


@pytest.mark.parametrize("candidates", [raster._CANDIDATES, 50])
def test_each_pixel_shows_the_nearest_triangle_where_its_ray_meets_it(
    triangles: np.ndarray, candidates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raster, "_CANDIDATES", candidates)
    depth_N, triangle_N = looped(triangles, CAMERA)
    hits = rasterise(triangles, CAMERA)
    assert hits.pixel_P.tolist() == np.flatnonzero(triangle_N >= 0).tolist()
    assert (hits.triangle_P == triangle_N[hits.pixel_P]).all()
    np.testing.assert_allclose(hits.depth_P, depth_N[hits.pixel_P], rtol=1e-5)
    points_P3 = np.einsum("pi,pij->pj", hits.weights_P3, triangles[hits.triangle_P])
    rays_P3 = CAMERA.rays().reshape(-1, 3)[hits.pixel_P]
    np.testing.assert_allclose(points_P3, rays_P3 * hits.depth_P[:, None], atol=1e-4)


def test_what_is_behind_the_camera_or_has_no_area_is_left_out() -> None:
    seen = np.array([[(-9, -9, 2), (9, -9, 2), (0, 9, 2)]], np.float32)
    behind = seen * (1, 1, -1)
    reaching = seen + np.array([[(0, 0, -3), (0, 0, 0), (0, 0, 0)]], np.float32)
    line = seen[:, [0, 1, 1]]
    assert len(rasterise(seen, CAMERA).pixel_P)
    nothing = np.concatenate([behind, reaching, line]).astype(np.float32)
    assert not len(rasterise(nothing, CAMERA).pixel_P)
    assert not len(rasterise(nothing[:0], CAMERA).pixel_P)
