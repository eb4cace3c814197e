"""Make model input of a decoded image; used by serving, training and evaluation.

Equal to transformers' Tipsv2ImageProcessor within one grey level.
Shapes: H W pixels, height before width; 3 colour channels (RGB).
"""

import math
from collections.abc import Mapping
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.image_codec import scale_flat

Fit = Literal["squash", "aspect"]
Scaling = Literal["bilinear", "bicubic"]
FILTERS: Final[Mapping[Scaling, Image.Resampling]] = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


def target_size(
    height: int, width: int, *, resolution: int, fit: Fit, multiple: int = 14
) -> tuple[int, int]:
    """Size to scale an image to before it is encoded.

    Args:
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        resolution: Side of the square, or the shorter side, in pixels.
        fit: "squash" makes a square, as the reference processor does; "aspect" keeps the
            proportions and rounds both sides to the nearest multiple.
        multiple: Both sides are multiples of it.

    Returns:
        Height and width in pixels, each at least one `multiple`.

    Raises:
        ValueError: A size is below one pixel, `fit` is unknown, or `resolution` is no multiple.
    """
    if height < 1 or width < 1:
        raise ValueError(f"an image has at least one pixel, not {height} x {width}")
    if resolution < multiple or resolution % multiple:
        raise ValueError(f"resolution must be a positive multiple of {multiple}, not {resolution}")
    if fit == "squash":
        return resolution, resolution
    if fit == "aspect":
        scale = resolution / min(height, width)
        return _nearest(height * scale, multiple), _nearest(width * scale, multiple)
    raise ValueError(f"fit must be 'squash' or 'aspect', not {fit!r}")


def prepare_image(
    pixels_HW3: NDArray[np.uint8], size_hw: tuple[int, int], scaling: Scaling = "bilinear"
) -> NDArray[np.float32]:
    """Scale uint8 RGB with antialiasing to the model's input: float32 [3, H, W] in [0, 1].

    Raises:
        ValueError: The array is not uint8 [H, W, 3].
    """
    if pixels_HW3.dtype != np.uint8 or pixels_HW3.ndim != 3 or pixels_HW3.shape[2] != 3:
        raise ValueError(
            "an image must be uint8 [height, width, 3], "
            f"not {pixels_HW3.dtype} {list(pixels_HW3.shape)}"
        )
    return to_planes(scale_image(Image.fromarray(pixels_HW3), size_hw, scaling=scaling))


def scale_image(
    image: Image.Image,
    size_hw: tuple[int, int],
    box: tuple[float, float, float, float] | None = None,
    *,
    scaling: Scaling = "bilinear",
) -> Image.Image:
    """Scale with antialiasing.

    Args:
        image: Of any mode; the result is of mode RGB or L.
        size_hw: Height and width to scale to.
        box: Left, top, right and bottom of the part to scale; None for all of it.
        scaling: Bilinear, as the reference processor scales; the published protocol of zero-shot
            segmentation scales bicubically.
    """
    box = box or (0, 0, image.width, image.height)
    return scale_flat(image, size_hw, FILTERS[scaling], box)


def to_planes(image: Image.Image) -> NDArray[np.float32]:
    """The model's input, float32 [3, H, W] in [0, 1], of an image of mode RGB or L."""
    planes_3HW: NDArray[np.float32] = as_planes(split_planes(image))
    return planes_3HW


def split_planes(image: Image.Image) -> NDArray[np.uint8]:
    """The pixels of an image of mode RGB or L, contiguous [3, H, W]; see `as_planes`."""
    pixels_3HW = np.empty((3, image.height, image.width), np.uint8)
    bands = image.split()
    for pixels_HW, band in zip(pixels_3HW, bands * (3 // len(bands)), strict=True):
        pixels_HW[:] = np.asarray(band)
    return pixels_3HW


def as_planes(pixels_3HW: NDArray[Any], out_3HW: NDArray[np.float32] | None = None) -> NDArray[Any]:
    """The model's input of 8-bit pixels; float32 is input already.

    Args:
        pixels_3HW: Pixels, uint8 or float32.
        out_3HW: Where to write the input. Without it, float32 is returned as given.
    """
    if pixels_3HW.dtype != np.uint8 and out_3HW is None:
        return pixels_3HW
    planes_3HW = np.empty(pixels_3HW.shape, np.float32) if out_3HW is None else out_3HW
    if pixels_3HW.dtype == np.uint8:
        np.divide(pixels_3HW, np.float32(255), out=planes_3HW)
    else:
        planes_3HW[:] = pixels_3HW
    return planes_3HW


def _nearest(side: float, multiple: int) -> int:
    return max(1, math.floor(side / multiple + 0.5)) * multiple
