"""Make maps of any size from the outputs of dense heads.

Shapes: h w rows and columns of the head's output, eight per patch; H W pixels of the map; 3 axes
of a normal; K classes.
"""

from collections.abc import Callable, Mapping
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from model.segmentation import take_best, upsample_bilinear

# Values of the third dense head, segmentation, are logits; see `label_map`.
MapTask = Literal["depth", "normals"]

# Values in memory at a time in addition to the map: 4 MiB of float32.
BAND_ELEMENTS: Final = 1024 * 1024
# Opposite unit vectors cancel out to rounding noise of about this length.
NOISE: Final = np.float32(1e-6)
# The free parameter of cubic convolution, as in torch and OpenCV (Pillow has -0.5).
SHARPNESS: Final = -0.75
SMALLEST: Final = np.finfo(np.float32).tiny


def depth_map(
    depth_hw: NDArray[np.float32], size_hw: tuple[int, int] | None = None
) -> NDArray[np.float32]:
    """Depth of every pixel in metres, float32 [H, W], as transformers' post-processing gives it.

    Args:
        depth_hw: Depth in metres.
        size_hw: Height and width of the map; None for those of the head.

    Raises:
        ValueError: A shape is wrong, a number is not finite, or a size is below one pixel.
    """
    _check(depth_hw, "depth", (), size_hw)
    if size_hw is None:
        return depth_hw.astype(np.float32, copy=False)
    map_HW: NDArray[np.float32] = upsample_bilinear(depth_hw[None], size_hw)[0]
    return map_HW


def normal_map(
    normals_3hw: NDArray[np.float32], size_hw: tuple[int, int] | None = None
) -> NDArray[np.float32]:
    """Surface normal of every pixel, unit vectors, float32 [H, W, 3].

    Vectors are normalised, scaled bicubically, and normalised again. transformers'
    `post_process_normal_estimation` scales bilinearly and omits the last step, so its vectors are
    shorter at edges. Where opposite directions cancel out, the vector is zero, never NaN.

    Source: google-deepmind/tips, `pytorch/TIPS_decoder_inference.ipynb`.

    Args:
        normals_3hw: Vectors of any length.
        size_hw: Height and width of the map; None for those of the head.

    Raises:
        ValueError: A shape is wrong, a number is not finite, or a size is below one pixel.
    """
    _check(normals_3hw, "normals", (3,), size_hw)
    unit_3hw = _unit(normals_3hw)
    _, rows, columns = unit_3hw.shape
    if size_hw is None:
        return np.ascontiguousarray(unit_3hw.transpose(1, 2, 0))
    height, width = size_hw
    wide_3hW = unit_3hw @ bicubic_matrix(columns, width).T
    rows_Hh = bicubic_matrix(rows, height)
    map_HW3 = np.empty((height, width, 3), np.float32)
    band = max(1, BAND_ELEMENTS // (3 * width))
    for top in range(0, height, band):
        part = slice(top, top + band)
        scaled_3HW = rows_Hh[part] @ wide_3hW
        length_HW = np.sqrt(np.square(scaled_3HW).sum(axis=0))
        factor_HW = np.where(length_HW > NOISE, 1 / np.maximum(length_HW, NOISE), np.float32(0))
        np.multiply(scaled_3HW, factor_HW, out=map_HW3[part].transpose(2, 0, 1))
    return map_HW3


MAPS: Final[Mapping[MapTask, Callable[..., NDArray[np.float32]]]] = {
    "depth": depth_map,
    "normals": normal_map,
}


def make_map(
    task: MapTask, raw: NDArray[np.float32], size_hw: tuple[int, int] | None = None
) -> NDArray[np.float32]:
    """`depth_map` or `normal_map`, by the head's name."""
    return MAPS[task](raw, size_hw)


def label_map(logits_Khw: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Label of the highest logit at each place, from 1, the first of equal ones: uint16 [h, w]."""
    label_hw = np.empty(logits_Khw.shape[1:], np.uint16)
    take_best(logits_Khw, label_hw)
    return label_hw


def bicubic_matrix(size_in: int, size_out: int) -> NDArray[np.float32]:
    """Weights [size_out, size_in] of cubic convolution between pixel centres; rows sum to 1.

    Equal to torch's `interpolate(mode="bicubic", align_corners=False)`: no antialiasing, and the
    outermost pixel is repeated beyond the edge.
    """
    centres = (np.arange(size_out) + 0.5) * (size_in / size_out) - 0.5
    first = np.floor(centres).astype(np.intp) - 1
    weights = np.zeros((size_out, size_in), np.float32)
    for index in (first, first + 1, first + 2, first + 3):
        near = np.clip(index, 0, size_in - 1)
        np.add.at(weights, (np.arange(size_out), near), _cubic(np.abs(centres - index)))
    return weights


def _cubic(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' convolution kernel at a distance of at most two pixels."""
    a, x = SHARPNESS, distance
    inner = ((a + 2) * x - (a + 3)) * x * x + 1
    outer = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, inner, outer)


def _unit(vectors_3hw: NDArray[np.float32]) -> NDArray[np.float32]:
    # Divided by the largest component first, so that squares neither overflow nor underflow.
    largest_hw = np.abs(vectors_3hw).max(axis=0)
    scaled_3hw = vectors_3hw / np.maximum(largest_hw, SMALLEST)
    length_hw = np.sqrt(np.square(scaled_3hw).sum(axis=0))
    unit_3hw: NDArray[np.float32] = scaled_3hw / np.maximum(length_hw, SMALLEST)
    return unit_3hw


def _check(
    raw: NDArray[np.float32], name: str, axes: tuple[int, ...], size_hw: tuple[int, int] | None
) -> None:
    if raw.ndim != len(axes) + 2 or raw.shape[:-2] != axes or 0 in raw.shape:
        wanted = ", ".join([*map(str, axes), "rows", "columns"])
        raise ValueError(f"{name} must have the shape [{wanted}], not {list(raw.shape)}")
    if size_hw is not None and min(size_hw) < 1:
        raise ValueError(f"a map has at least one pixel, not {size_hw[0]} x {size_hw[1]}")
    if not np.isfinite(raw).all():
        raise ValueError(f"the head's {name} are not all finite numbers")
