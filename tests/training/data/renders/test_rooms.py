"""Depth and normals of rendered rooms agree with each other, the room and the furniture."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from training.data.backgrounds import Photo
from training.data.renders import rooms
from training.data.renders.catalogues import Furniture
from training.data.renders.raster import Camera
from training.data.renders.rooms import RoomSource

SIDE = 48
PHOTO = Photo(pixels_HW3=np.full((60, 80, 3), 90, np.uint8), phrase="grey")


@pytest.fixture
def source(boxes: list[Furniture]) -> RoomSource:
    return RoomSource(furniture=boxes, photos=(PHOTO,), side=SIDE)


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
        assert depth.std() > 0.05
        ups.append(normals[-1, :, 1].mean())
        if not cameras:
            continue
        # The point of each pixel with x right, y up, z towards the camera.
        places = cameras[0].rays() * depth[..., None] * (1, -1, -1)
        assert ((places * normals).sum(-1) < 1e-4).all()  # normals look at the camera
        same = (normals[:, 1:] * normals[:, :-1]).sum(-1) > 0.9999
        step = places[:, 1:] - places[:, :-1]
        off = np.abs((step * normals[:, 1:]).sum(-1)) / depth[:, 1:]
        # Two parallel surfaces may be neighbours: a table's top before a floor.
        assert np.mean(off[same] < 1e-3) > 0.97
        checked += same.sum()
    assert checked > 5 * SIDE * SIDE
    # At the bottom of most images is the floor: its normal has a positive y.
    assert np.mean(np.array(ups) > 0.3) > 0.6


def test_a_room_is_a_function_of_seed_and_index(source: RoomSource) -> None:
    one, same, other = (
        replace(source, seed=seed).render(3) for seed in (source.seed, source.seed, 1)
    )
    assert (one.pixels_SS3 == same.pixels_SS3).all()
    assert (one.depth_SS == same.depth_SS).all()
    assert not (one.depth_SS == other.depth_SS).all()


def test_furniture_is_seen_before_the_empty_room(
    source: RoomSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = [source.render(index) for index in range(12)]
    monkeypatch.setattr(rooms, "_draw", lambda *_: None)
    nearer, reds = [], []
    for index, furnished in enumerate(full):
        bare = source.render(index)
        assert (furnished.depth_SS <= bare.depth_SS).all()
        nearer.append((furnished.depth_SS < bare.depth_SS).mean())
        red, green, blue = furnished.pixels_SS3.astype(int).transpose(2, 0, 1)
        reds.append(((red > 60) & (green < red // 4) & (blue < red // 4)).mean())
    assert max(nearer) > 0.02
    assert max(reds) > 0.02
