"""Rendered rooms: the furniture, what each pixel shows, and the folders that they are kept in."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from PIL import Image

from model.labelled.sets import read_depth, read_normals
from tests.training.furniture import write_catalogue
from training.data.backgrounds import Photo
from training.data.renders import catalogues, raster, rooms
from training.data.renders.catalogues import Furniture, catalogue_files, read_catalogue
from training.data.renders.raster import NEAR_M, Camera, rasterise
from training.data.renders.rooms import RoomSource
from training.dense.rooms import load_furniture, write_rooms

SIDE = 48
PHOTO = Photo(pixels_HW3=np.full((60, 80, 3), 90, np.uint8), phrase="grey")
CAMERA = Camera(focal=20.0, side=24)


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A box of two materials, standing and lying, and entries that cannot be read."""
    path = tmp_path_factory.mktemp("furniture") / "Test.sh3f"
    write_catalogue(path)
    return path


@pytest.fixture(scope="module")
def boxes(catalogue: Path) -> list[Furniture]:
    return list(read_catalogue(catalogue))


@pytest.fixture
def source(boxes: list[Furniture]) -> RoomSource:
    return RoomSource(furniture=boxes, photos=(PHOTO,), side=SIDE)


def test_catalogues_are_chosen_by_name_without_very_large_models(
    catalogue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(load_furniture(catalogue.parent, ["Test"])) == 2
    with pytest.raises(FileNotFoundError, match="lacks the catalogue Scopia"):
        load_furniture(catalogue.parent, ["Scopia"])
    with pytest.raises(FileNotFoundError, match="sweethome3d-furniture"):
        catalogue_files(tmp_path)
    monkeypatch.setattr(catalogues, "MAX_MODEL_BYTES", 100)
    assert not list(read_catalogue(catalogue))


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


@pytest.mark.parametrize("candidates", [raster._CANDIDATES, 50])
def test_each_pixel_shows_the_nearest_triangle_where_its_ray_meets_it(
    candidates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raster, "_CANDIDATES", candidates)
    rng = np.random.default_rng(0)  # triangles of all sizes, many of them overlapping
    centres = rng.uniform((-1, -1, 1), (1, 1, 4), (60, 1, 3))
    corners = centres + rng.choice((0.02, 0.2, 1.0), (60, 1, 1)) * rng.normal(size=(60, 3, 3))
    triangles = np.maximum(corners, (-np.inf, -np.inf, 0.2)).astype(np.float32)
    depth_N, triangle_N = looped(triangles, CAMERA)
    hits = rasterise(triangles, CAMERA)
    assert hits.pixel_P.tolist() == np.flatnonzero(triangle_N >= 0).tolist()
    assert (hits.triangle_P == triangle_N[hits.pixel_P]).all()
    np.testing.assert_allclose(hits.depth_P, depth_N[hits.pixel_P], rtol=1e-5)
    points_P3 = np.einsum("pi,pij->pj", hits.weights_P3, triangles[hits.triangle_P])
    rays_P3 = CAMERA.rays().reshape(-1, 3)[hits.pixel_P]
    np.testing.assert_allclose(points_P3, rays_P3 * hits.depth_P[:, None], atol=1e-4)


def test_points_normals_and_depth_agree(
    source: RoomSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    cameras: list[Camera] = []
    draw: Callable[..., None] = rooms._draw

    def note(one: object, view: Any, *rest: object) -> None:
        cameras.append(view.camera)
        draw(one, view, *rest)

    monkeypatch.setattr(rooms, "_draw", note)
    checked, ups = 0, []
    for index in range(12):
        cameras.clear()
        render = source.render(index)
        normals, depth = render.normals_SS3, render.depth_SS
        np.testing.assert_allclose(np.linalg.norm(normals, axis=-1), 1, atol=1e-4)
        assert 0 < depth.min() <= depth.max() < 10
        ups.append(normals[-1, :, 1].mean())
        if not cameras:
            continue
        # The point of each pixel with x right, y up, z towards the camera.
        places = cameras[0].rays() * depth[..., None] * (1, -1, -1)
        assert ((places * normals).sum(-1) < 1e-4).all()  # normals look at the camera
        same = (normals[:, 1:] * normals[:, :-1]).sum(-1) > 0.9999
        off = np.abs(((places[:, 1:] - places[:, :-1]) * normals[:, 1:]).sum(-1)) / depth[:, 1:]
        # Two parallel surfaces may be neighbours: a table's top before a floor.
        assert np.mean(off[same] < 1e-3) > 0.97
        checked += same.sum()
    assert checked > 5 * SIDE * SIDE
    # At the bottom of most images is the floor: its normal has a positive y.
    assert np.mean(np.array(ups) > 0.3) > 0.6


def test_a_room_is_a_function_of_seed_and_index(source: RoomSource) -> None:
    one, same, other = (replace(source, seed=seed).render(3) for seed in (0, 0, 1))
    assert (one.pixels_SS3 == same.pixels_SS3).all()
    assert (one.depth_SS == same.depth_SS).all()
    assert not (one.depth_SS == other.depth_SS).all()


def test_a_stopped_run_renders_what_is_missing(source: RoomSource, tmp_path: Path) -> None:
    rooms_of = [source.render(index) for index in range(3)]
    with patch.object(RoomSource, "render") as render:
        render.side_effect = [rooms_of[0], KeyboardInterrupt, *rooms_of[1:]]
        with pytest.raises(KeyboardInterrupt):
            write_rooms(lambda: source, tmp_path, 3)
        for _ in range(2):
            write_rooms(lambda: source, tmp_path, 3)
        assert [call.args[0] for call in render.call_args_list] == [0, 1, 1, 2]
    depths = read_depth(tmp_path / "images", tmp_path / "depths")
    normals = read_normals(tmp_path / "images", tmp_path / "normals")
    for index, image in enumerate(depths.images):
        room = rooms_of[index]
        assert np.array_equal(np.asarray(Image.open(image.path)), room.pixels_SS3)
        assert np.array_equal(depths.read(index), room.depth_SS)
        assert np.allclose(normals.read(index), room.normals_SS3, atol=2e-3)
