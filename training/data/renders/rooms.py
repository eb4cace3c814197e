"""Renders rooms with furniture: an image, depth in metres and normals of every pixel.

Room i is a pure function of (seed, i) and the models, so renders are made in parts and resumed. The
world has x right, y up, z into the room; its origin is a corner of the floor. The camera has x
right, y down, z forward. Normals are given with x right, y up, z towards the camera.

Shapes: T triangles, S side of the image in pixels, P pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from training.data.backgrounds import Photo, draw_background
from training.data.renders.catalogues import Furniture
from training.data.renders.raster import Camera, rasterise

Floats = NDArray[np.float32]
AnyFloats = NDArray[np.floating]

_STREAM: Final = 29  # separates these random numbers from those of other scenes
_TEXTURE_SIDE: Final = 192
_MAX_OBJECTS: Final = 6
_CLOSE_UPS: Final = 0.35  # share of the images whose camera looks at one object from nearby
_PICTURES: Final = 0.5  # share of the rooms with photographs on their walls
_TRIES: Final = 20
_CLEARANCE_M: Final = 0.15  # between camera and furniture
# Axis of each pair of planes of a room, and the two axes along which its texture lies.
_TEXTURE_AXES: Final = ((2, 1), (0, 2), (0, 1))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Render:
    """An image and what is true of its pixels.

    Attributes:
        pixels_SS3: uint8 RGB.
        depth_SS: Metres along the optical axis.
        normals_SS3: Unit vectors; x right, y up, z towards the camera.
    """

    pixels_SS3: NDArray[np.uint8]
    depth_SS: Floats
    normals_SS3: Floats


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Placed:
    """A model in the room: its corners in the world, and its place on the floor."""

    model: Furniture
    corners_T33: Floats
    centre: Floats
    radius_m: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Surface:
    """What is seen at each pixel: point and normal in the world, colour from 0 to 1."""

    points_P3: Floats
    normals_P3: Floats
    colours_P3: Floats


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _View:
    """A camera in the world; the rows of `axes_33` are its right, down and forward."""

    camera: Camera
    place_3: Floats
    axes_33: Floats


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RoomSource:
    """Renders rooms with models of some catalogues, and photographs on walls and floors."""

    furniture: Sequence[Furniture]
    photos: Sequence[Photo] = field(default=())
    side: int = 320
    seed: int = 0

    def render(self, index: int) -> Render:
        """Room number `index`."""
        rng = np.random.default_rng((self.seed, _STREAM, index))
        size_3 = rng.uniform((2.5, 2.3, 2.5), (6.5, 3.0, 6.5)).astype(np.float32)
        placed = self._furnish(rng, size_3)
        view = self._view(rng, size_3, placed)
        placed = [one for one in placed if _is_clear(one, view.place_3)]
        surface, depth_P = self._room(rng, view, size_3, placed)
        for one in placed:
            _draw(one, view, surface, depth_P)
        side = self.side
        pixels_P3 = _lit(rng, surface, view.place_3, size_3)
        normals_P3 = surface.normals_P3 @ view.axes_33.T * np.array((1, -1, -1), np.float32)
        return Render(
            pixels_SS3=_photographed(rng, pixels_P3.reshape(side, side, 3)),
            depth_SS=depth_P.reshape(side, side),
            normals_SS3=normals_P3.reshape(side, side, 3),
        )

    def _furnish(self, rng: np.random.Generator, size_3: Floats) -> list[_Placed]:
        placed: list[_Placed] = []
        for _ in range(int(rng.integers(1, _MAX_OBJECTS + 1))):
            model = self.furniture[int(rng.integers(len(self.furniture)))]
            width, height, depth = model.size
            radius_m = float(np.hypot(width, depth)) / 2
            if height > 0.95 * size_3[1] or 2.2 * radius_m > min(size_3[0], size_3[2]):
                continue
            for _ in range(_TRIES):
                centre = rng.uniform((radius_m,) * 2, size_3[[0, 2]] - radius_m)
                gaps = [
                    float(np.hypot(*(centre - one.centre))) - radius_m - one.radius_m
                    for one in placed
                ]
                if min(gaps, default=0.0) >= 0:
                    placed.append(_place(rng, model, centre.astype(np.float32), radius_m))
                    break
        return placed

    def _view(self, rng: np.random.Generator, size_3: Floats, placed: Sequence[_Placed]) -> _View:
        focal = self.side / 2 / np.tan(np.deg2rad(rng.uniform(45, 75)) / 2)
        low, high = np.array((0.1, 0.3, 0.02)), np.array((0.9, 0.75, 0.35))
        place_3 = rng.uniform(low, high) * size_3
        target_3 = rng.uniform((0.2, 0.0, 0.5), (0.8, 0.5, 1.0)) * size_3
        if placed and rng.random() < _CLOSE_UPS:
            one = placed[int(rng.integers(len(placed)))]
            points = one.corners_T33.reshape(-1, 3)
            target_3 = (points.min(0) + points.max(0)) / 2
            reach = max(float(np.ptp(points, axis=0).max()), 0.3)
            angle, lift = rng.uniform(0, 2 * np.pi), rng.uniform(0.05, 0.9)
            away = np.array((np.cos(angle), lift, np.sin(angle)))
            place_3 = target_3 + away * one.radius_m + away * rng.uniform(0.7, 1.6) * reach
        place_3 = np.clip(place_3, 0.1, size_3 - 0.1)
        return _View(
            camera=Camera(float(focal), self.side),
            place_3=place_3.astype(np.float32),
            axes_33=_look_at(place_3, target_3, np.deg2rad(rng.normal(0, 3))),
        )

    def _room(
        self, rng: np.random.Generator, view: _View, size_3: Floats, placed: Sequence[_Placed]
    ) -> tuple[_Surface, Floats]:
        """Floor, walls and ceiling: the first plane that each pixel's ray meets from inside."""
        rays_P3 = view.camera.rays().reshape(-1, 3) @ view.axes_33
        bound_P3 = np.where(rays_P3 > 0, size_3, 0).astype(np.float32)
        steps_P3 = (bound_P3 - view.place_3) / np.where(np.abs(rays_P3) < 1e-6, 1e-6, rays_P3)
        axis_P = np.abs(steps_P3).argmin(axis=1)
        rows = np.arange(len(rays_P3))
        depth_P = np.abs(steps_P3)[rows, axis_P]
        points_P3 = view.place_3 + rays_P3 * depth_P[:, None]
        is_far_P = rays_P3[rows, axis_P] > 0
        normals_P3 = np.zeros_like(points_P3)
        normals_P3[rows, axis_P] = np.where(is_far_P, -1, 1)
        colours_P3 = np.empty_like(points_P3)
        for axis in range(3):
            for is_far in (False, True):
                here_P = (axis_P == axis) & (is_far_P == is_far)
                along = list(_TEXTURE_AXES[axis])
                colours_P3[here_P] = self._plane(rng, points_P3[here_P][:, along], axis, is_far)
        floor_P = (axis_P == 1) & ~is_far_P
        colours_P3[floor_P] *= _contact(points_P3[floor_P][:, [0, 2]], placed)[:, None]
        surface = _Surface(points_P3=points_P3, normals_P3=normals_P3, colours_P3=colours_P3)
        return surface, depth_P.astype(np.float32)

    def _plane(
        self, rng: np.random.Generator, points_P2: Floats, axis: int, is_far: bool
    ) -> Floats:
        """Colours of a floor, a wall or the ceiling at some points, in metres along it."""
        is_floor, is_ceiling = axis == 1 and not is_far, axis == 1 and is_far
        photos = self.photos if is_floor or rng.random() < 0.2 else ()
        texture, _ = draw_background(rng, _TEXTURE_SIDE, photos)
        if is_ceiling or (not is_floor and rng.random() < 0.5):
            texture = texture * 0.15 + rng.uniform(140, 215)
        tile_m = rng.uniform(0.4, 3.0)
        colours_P3 = _sample(texture / 255, points_P2 / tile_m)
        if axis != 1 and self.photos and rng.random() < _PICTURES:
            self._hang(rng, points_P2, colours_P3)
        return colours_P3

    def _hang(self, rng: np.random.Generator, points_P2: Floats, colours_P3: Floats) -> None:
        """Put a photograph on a wall; the second coordinate of points is the height."""
        photo = self.photos[int(rng.integers(len(self.photos)))]
        size: Floats = rng.uniform((0.4, 0.3), (1.4, 1.0)).astype(np.float32)
        corner: Floats = rng.uniform((0.2, 1.0), (3.0, 1.4)).astype(np.float32)
        at_P2: Floats = (points_P2 - corner) / size
        inside_P = ((at_P2 >= 0) & (at_P2 < 1)).all(axis=1)
        colours_P3[inside_P] = _sample(photo.pixels_HW3 / np.float32(255), at_P2[inside_P])


def _place(rng: np.random.Generator, model: Furniture, centre: Floats, radius_m: float) -> _Placed:
    angle = rng.uniform(0, 2 * np.pi)
    cosine, sine = np.cos(angle), np.sin(angle)
    turn = np.array(((cosine, 0, sine), (0, 1, 0), (-sine, 0, cosine)), np.float32)
    corners_T33 = model.corners_T33 @ turn.T + np.array((centre[0], 0, centre[1]), np.float32)
    return _Placed(model=model, corners_T33=corners_T33, centre=centre, radius_m=radius_m)


def _is_clear(one: _Placed, place_3: Floats) -> bool:
    """Whether the camera is not inside a model's box."""
    points = one.corners_T33.reshape(-1, 3)
    nearest = np.clip(place_3, points.min(0), points.max(0))
    return float(np.linalg.norm(place_3 - nearest)) > _CLEARANCE_M


def _look_at(place_3: AnyFloats, target_3: AnyFloats, roll: float) -> Floats:
    """Right, down and forward of a camera that looks at a point."""
    forward = (target_3 - place_3) / max(float(np.linalg.norm(target_3 - place_3)), 1e-6)
    right = np.cross((0.0, 1.0, 0.0), forward)
    right /= max(float(np.linalg.norm(right)), 1e-6)
    down = -np.cross(forward, right)
    turned = np.stack(
        (
            np.cos(roll) * right + np.sin(roll) * down,
            np.cos(roll) * down - np.sin(roll) * right,
            forward,
        )
    )
    return turned.astype(np.float32)


def _draw(one: _Placed, view: _View, surface: _Surface, depth_P: Floats) -> None:
    """Draw a model where it is nearer than what is there."""
    seen_T33: Floats = ((one.corners_T33 - view.place_3) @ view.axes_33.T).astype(np.float32)
    hits = rasterise(seen_T33, view.camera)
    shown = np.flatnonzero(hits.depth_P < depth_P[hits.pixel_P])
    pixel_P, triangle_P = hits.pixel_P[shown], hits.triangle_P[shown]
    weights_P3 = hits.weights_P3[shown]
    corners_P33 = one.corners_T33[triangle_P]
    points_P3 = np.einsum("pi,pij->pj", weights_P3, corners_P33)
    across = np.cross(corners_P33[:, 1] - corners_P33[:, 0], corners_P33[:, 2] - corners_P33[:, 0])
    normals_P3 = across / np.maximum(np.linalg.norm(across, axis=1, keepdims=True), 1e-12)
    # Faces have two sides: the visible one looks at the camera.
    facing_P = ((view.place_3 - points_P3) * normals_P3).sum(axis=1)
    normals_P3 *= np.where(facing_P < 0, -1, 1)[:, None]
    depth_P[pixel_P] = hits.depth_P[shown]
    surface.points_P3[pixel_P] = points_P3
    surface.normals_P3[pixel_P] = normals_P3
    surface.colours_P3[pixel_P] = _colours(one.model, triangle_P, weights_P3)


def _colours(model: Furniture, triangle_P: NDArray[np.int64], weights_P3: Floats) -> Floats:
    material_P = model.material_T[triangle_P]
    colours_P3 = model.colours_M3[material_P]
    at_P2 = np.einsum("pi,pij->pj", weights_P3, model.texture_T32[triangle_P])
    for material in np.unique(material_P):
        texture = model.textures[material]
        if texture is not None:
            here_P = material_P == material
            colours_P3[here_P] *= _sample(
                texture / np.float32(255), at_P2[here_P] * np.array((1, -1))
            )
    return colours_P3


def _sample(texture_HW3: AnyFloats, at_P2: AnyFloats) -> Floats:
    """Colours of a repeated texture at points; 1 is its width and its height."""
    height, width = texture_HW3.shape[:2]
    columns = np.floor(at_P2[:, 0] % 1 * width).astype(np.int64) % width
    rows = np.floor(at_P2[:, 1] % 1 * height).astype(np.int64) % height
    colours: Floats = texture_HW3[rows, columns].astype(np.float32)
    return colours


def _contact(points_P2: Floats, placed: Sequence[_Placed]) -> Floats:
    """How much light of the room reaches the floor beside furniture."""
    light_P = np.ones(len(points_P2), np.float32)
    for one in placed:
        away_P = np.linalg.norm(points_P2 - one.centre, axis=1) - 0.8 * one.radius_m
        light_P *= 1 - 0.5 * np.exp(-np.maximum(away_P, 0) / 0.12)
    return light_P


def _lit(rng: np.random.Generator, surface: _Surface, place_3: Floats, size_3: Floats) -> Floats:
    """Colours under a lamp below the ceiling and light from everywhere."""
    lamp_3 = (rng.uniform((0.2, 0.8, 0.2), (0.8, 0.98, 0.8)) * size_3).astype(np.float32)
    if rng.random() < 0.15:  # a flash beside the camera
        lamp_3 = place_3 + np.float32(0.05)
    ambient, strength = rng.uniform(0.25, 0.7), rng.uniform(0.4, 1.1)
    way_P3 = lamp_3 - surface.points_P3
    distance_P = np.maximum(np.linalg.norm(way_P3, axis=1), 0.1)
    cosine_P = np.maximum((way_P3 * surface.normals_P3).sum(axis=1) / distance_P, 0)
    light_P = ambient + strength * cosine_P / (0.5 + 0.12 * distance_P**2)
    tint_3 = rng.uniform(0.88, 1.0, 3).astype(np.float32)
    lit: Floats = surface.colours_P3 * light_P[:, None].astype(np.float32) * tint_3
    return lit


def _photographed(rng: np.random.Generator, light_SS3: Floats) -> NDArray[np.uint8]:
    """Exposure, blur and noise of a camera."""
    exposed = np.clip(light_SS3 * rng.uniform(0.7, 1.4), 0, 1) ** rng.uniform(0.7, 1.3)
    if rng.random() < 0.5:
        exposed = cv2.GaussianBlur(exposed, (0, 0), float(rng.uniform(0.3, 1.2)))
    noisy = exposed * 255 + rng.normal(0, rng.uniform(0, 4), exposed.shape)
    return np.asarray(np.clip(noisy + 0.5, 0, 255), np.uint8)
