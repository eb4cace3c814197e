"""NAVI's photographs of single objects: cut to the object, with depth, and normals made of it.

Source: google/navi for the layout and the coding of depth; mbanani/probe3d, `evals/datasets`, for
sizes, crop and normals. It stores a scaled image as JPEG before it cuts; this does not.

Shapes: H W pixels of the cut square, h w pixels before.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from model.labelled.sets import DepthSet, Floats, ImageSource, NormalSet, SetError, existing

# Folders of an object: photographs of it in different places, and series of photographs in one.
WILD, MULTIVIEW = "wild_set", "multiview_*"
# Short side in pixels of scaled images, and the side of the square.
FIRST_SIDE: Final = 1024
SIDE: Final = 512
# A pixel of depth is a disparity in 1 / mm: 65535 stands for 0.1, a distance of 10 mm.
DISPARITY_STEP: Final = 0.1 / 65535
# Where there is no depth, normals see a plane this far away. In metres.
FAR_M: Final = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class NaviImage(ImageSource):
    """A photograph, cut to the square of its object; lengths are in pixels of the file."""

    depth: Path = field(default=Path())
    focal_length: float = 0.0
    short_side: int = 1

    def read(self) -> bytes:
        """The square as PNG, 512 x 512 pixels.

        Raises:
            SetError: A file cannot be read.
        """
        upright = ImageOps.exif_transpose(_open(self.path).convert("RGB"))
        scale = FIRST_SIDE / min(upright.size)
        size = int(upright.width * scale), int(upright.height * scale)
        small_hw3 = np.asarray(upright.resize(size, Image.Resampling.BILINEAR))
        square_HW3 = _enlarged(_centre(small_hw3)[self.window()])
        stream = BytesIO()
        Image.fromarray(square_HW3).save(stream, "PNG")
        return stream.getvalue()

    def window(self) -> tuple[slice, slice]:
        """Rows and columns of the object's square."""
        return square_around(self.read_depth() > 0, self.depth)

    def read_depth(self) -> Floats:
        """Depth in metres of the centre of the image, 512 x 512 pixels; 0 is none.

        Raises:
            SetError: The file cannot be read.
        """
        disparity_hw = np.asarray(_open(self.depth)).astype(np.float64) * DISPARITY_STEP
        height, width = disparity_hw.shape
        scale = FIRST_SIDE / min(height, width)
        rows, columns = (
            ((np.arange(int(n * scale)) + 0.5) * (n / int(n * scale))).astype(int)
            for n in (height, width)
        )
        small_hw = _centre(disparity_hw[np.ix_(rows, columns)])
        depth_hw: Floats = np.zeros(small_hw.shape)
        np.divide(1e-3, small_hw, out=depth_hw, where=small_hw > 0)
        return depth_hw


@dataclass(frozen=True, slots=True, kw_only=True)
class NaviDepth(DepthSet):
    """Depth in metres."""

    def read(self, index: int) -> Floats:
        """Depth of every pixel of the square [H, W]; NaN is none."""
        image = _navi(self.images[index])
        depth_HW = _enlarged(image.read_depth()[image.window()])
        return np.where(depth_HW > 0, depth_HW, np.nan)


@dataclass(frozen=True, slots=True, kw_only=True)
class NaviNormals(NormalSet):
    """Normals of the depth: x to the right, y down, z away from the camera."""

    def read(self, index: int) -> Floats:
        """Unit normal of every pixel of the square [H, W, 3]; NaN is none."""
        image = _navi(self.images[index])
        depth_hw = image.read_depth()[image.window()]
        focal_length = image.focal_length * SIDE / image.short_side
        return _enlarged(normals_of(depth_hw, focal_length))


def read_navi(folder: Path, scenes: str) -> list[NaviImage]:
    """The photographs of all objects in some scenes.

    Raises:
        SetError: A list of images is malformed, or a file is missing.
    """
    found = []
    for listed in sorted(folder.glob(f"*/{scenes}/annotations.json")):
        try:
            rows: Sequence[Any] = json.loads(listed.read_text(encoding="utf-8"))
            for row in rows:
                depth = (listed.parent / "depth" / row["filename"]).with_suffix(".png")
                found.append(
                    NaviImage(
                        path=listed.parent / "images" / row["filename"],
                        depth=depth,
                        focal_length=float(row["camera"]["focal_length"]),
                        short_side=min(row["image_size"]),
                    )
                )
        except (ValueError, KeyError, TypeError) as error:
            raise SetError(f"{listed} is no list of images as NAVI has it.") from error
    existing((file for image in found for file in (image.path, image.depth)), "files")
    return found


def normals_of(depth_hw: Floats, focal_length: float) -> Floats:
    """Unit normals [h, w, 3] of the four triangles around each point of depth; NaN without depth.

    As in Probe3D, the camera looks at the first pixel and not at the middle. Depth is in metres, 0
    is none; the focal length is in pixels.
    """
    height, width = depth_hw.shape
    far_hw = np.where(depth_hw > 0, depth_hw, FAR_M)
    x_w, y_h = np.arange(width) + 0.5, np.arange(height) + 0.5
    points_hw3 = np.stack(
        [x_w * far_hw / focal_length, y_h[:, None] * far_hw / focal_length, far_hw], axis=-1
    )
    centre = points_hw3[1:-1, 1:-1]
    left, right = points_hw3[1:-1, :-2] - centre, points_hw3[1:-1, 2:] - centre
    above, below = points_hw3[:-2, 1:-1] - centre, points_hw3[2:, 1:-1] - centre
    normals_hw3 = np.full((height, width, 3), np.nan)
    normals_hw3[1:-1, 1:-1] = (
        np.cross(left, above)
        + np.cross(above, right)
        + np.cross(right, below)
        + np.cross(below, left)
    )
    normals_hw3[depth_hw <= 0] = np.nan
    unit_hw3: Floats = normals_hw3 / np.linalg.norm(normals_hw3, axis=-1, keepdims=True)
    return unit_hw3


def _navi(image: ImageSource) -> NaviImage:
    assert isinstance(image, NaviImage)
    return image


def _open(path: Path) -> Image.Image:
    try:
        image = Image.open(path)
        image.load()
    except (OSError, UnidentifiedImageError) as error:
        raise SetError(f"{path} is no image that can be read.") from error
    return image


def _centre(pixels: NDArray[Any]) -> NDArray[Any]:
    """The middle square, with every second pixel: 512 x 512."""
    height, width = pixels.shape[:2]
    scale = min(height, width) / SIDE
    rows, columns = int(height / scale), int(width / scale)
    small = pixels[np.ix_(_nearest(height, rows), _nearest(width, columns))]
    top, left = round((rows - SIDE) / 2), round((columns - SIDE) / 2)
    return small[top : top + SIDE, left : left + SIDE]


def _enlarged(square: NDArray[Any]) -> NDArray[Any]:
    """Scaled to 512 x 512 by the nearest pixel."""
    return square[np.ix_(_nearest(square.shape[0], SIDE), _nearest(square.shape[1], SIDE))]


def _nearest(size_in: int, size_out: int) -> NDArray[np.intp]:
    return (np.arange(size_out) * (size_in / size_out)).astype(np.intp)


def square_around(shown_HW: NDArray[np.bool_], path: Path) -> tuple[slice, slice]:
    """The smallest square with all of the object, moved into the image where it would leave it."""
    places_P2 = np.argwhere(shown_HW)
    if len(places_P2) < 2:
        raise SetError(
            f"{path} has no depth in its middle; remove its image from annotations.json."
        )
    first, last = places_P2.min(0), places_P2.max(0)
    side = (last - first).max()
    spare = side - (last - first)
    corner = first - spare // 2
    if (corner < 0).any() or (corner + side > shown_HW.shape).any():
        corner = np.maximum(first - spare, 0)
    top, left = corner.tolist()
    return slice(top, top + side), slice(left, left + side)
