"""Depth and normals of rendered rooms agree with each other, the room and the furniture."""

from dataclasses import replace

import numpy as np
import pytest

from training.data.backgrounds import Photo
from training.data.renders import rooms
from training.data.renders.catalogues import Furniture
from training.data.renders.raster import Camera
from training.data.renders.rooms import Render, RoomSource

SIDE = 48
PHOTO = Photo(pixels_HW3=np.full((60, 80, 3), 90, np.uint8), phrase="grey")


@pytest.fixture
def source(boxes: list[Furniture]) -> RoomSource:
    return RoomSource(furniture=boxes, photos=(PHOTO,), side=SIDE)


def points(render: Render, focal: float) -> np.ndarray:
    """The point of each pixel with x right, y up, z towards the camera."""
    rays = Camera(focal, SIDE).rays()
    return rays * render.depth_SS[..., None] * (1, -1, -1)


def focal_of(source: RoomSource, index: int, monkeypatch: pytest.MonkeyPatch) -> float:
    """The focal length of a room's camera."""
    seen: list[Camera] = []
    draw = rooms._draw

    def note(*arguments: object) -> None:
        seen.append(arguments[1].camera)  # type: ignore[attr-defined]
        draw(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(rooms, "_draw", note)
    source.render(index)
    monkeypatch.setattr(rooms, "_draw", draw)
    return seen[0].focal if seen else 0.0


def test_neighbours_on_a_surface_lie_across_its_normal(
    source: RoomSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = 0
    for index in range(8):
        focal = focal_of(source, index, monkeypatch)
        if not focal:
            continue
        render = source.render(index)
        places, normals = points(render, focal), render.normals_SS3
        same = (normals[:, 1:] * normals[:, :-1]).sum(-1) > 0.9999
        step = places[:, 1:] - places[:, :-1]
        off = np.abs((step * normals[:, 1:]).sum(-1)) / render.depth_SS[:, 1:]
        # Two parallel surfaces may be neighbours: a table's top before a floor.
        assert np.mean(off[same] < 1e-3) > 0.97
        checked += same.sum()
    assert checked > 5 * SIDE * SIDE


def test_normals_have_unit_length_and_look_at_the_camera(
    source: RoomSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(4):
        focal = focal_of(source, index, monkeypatch)
        if not focal:
            continue
        render = source.render(index)
        np.testing.assert_allclose(np.linalg.norm(render.normals_SS3, axis=-1), 1, atol=1e-4)
        assert ((points(render, focal) * render.normals_SS3).sum(-1) < 1e-4).all()


def test_floors_look_up(source: RoomSource) -> None:
    """At the bottom of most images is the floor: its normal has a positive y."""
    ups = [source.render(index).normals_SS3[-1, :, 1].mean() for index in range(12)]
    assert np.mean(np.array(ups) > 0.3) > 0.6


def test_depth_is_within_the_room(source: RoomSource) -> None:
    for index in range(6):
        depth = source.render(index).depth_SS
        assert 0 < depth.min() <= depth.max() < 10
        assert depth.std() > 0.05


def test_a_room_is_a_function_of_seed_and_index(source: RoomSource) -> None:
    again = replace(source)
    one, same, other = source.render(3), again.render(3), replace(source, seed=1).render(3)
    assert (one.pixels_SS3 == same.pixels_SS3).all()
    assert (one.depth_SS == same.depth_SS).all()
    assert not (one.depth_SS == other.depth_SS).all()


def test_furniture_is_nearer_than_the_empty_room(
    source: RoomSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(rooms, "_draw", lambda *_: None)
        empty = [source.render(index) for index in range(8)]
    full = [source.render(index) for index in range(8)]
    nearer = [(f.depth_SS < e.depth_SS).mean() for f, e in zip(full, empty, strict=True)]
    assert max(nearer) > 0.02
    for furnished, bare in zip(full, empty, strict=True):
        assert (furnished.depth_SS <= bare.depth_SS).all()


def test_colours_of_models_are_seen(source: RoomSource) -> None:
    reds = []
    for index in range(12):
        red, green, blue = source.render(index).pixels_SS3.astype(int).transpose(2, 0, 1)
        reds.append(((red > 60) & (green < red // 4) & (blue < red // 4)).mean())
    assert max(reds) > 0.02
