"""Zero-shot segmentation as pure functions on arrays: patches and texts in, a label map out.

Shapes: N patches, D embedding width, P prompts of one class, K classes; H W pixels of the picture,
h w patch rows and columns.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_CLASSES = np.iinfo(np.uint16).max
# Cosines held at once while a large picture is labelled band by band: 16 MiB of float32.
BAND_ELEMENTS = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SegmentationMap:
    """A label and a score for every pixel.

    Attributes:
        labels_HW: uint16; k is the k-th class from 1, and 0 is background, used only where a
            threshold was chosen.
        score_HW: float32; cosine of the best class, also where the label is background.
    """

    labels_HW: NDArray[np.uint16]
    score_HW: NDArray[np.float32]


def l2_normalize(x: NDArray[np.float32], axis: int = -1) -> NDArray[np.float32]:
    """Scale vectors to unit length; zero vectors stay zero. Any shape, float32."""
    norm = np.linalg.norm(x, axis=axis, keepdims=True)
    unit: NDArray[np.float32] = (x / np.maximum(norm, 1e-12)).astype(np.float32, copy=False)
    return unit


def average_prompts(text_PD: NDArray[np.float32]) -> NDArray[np.float32]:
    """One embedding [D] for a class: normalise each prompt, average, normalise again."""
    return l2_normalize(l2_normalize(text_PD).mean(axis=0))


def cosine_map(
    patches_ND: NDArray[np.float32], classes_KD: NDArray[np.float32], grid_hw: tuple[int, int]
) -> NDArray[np.float32]:
    """Cosine of every patch with every class: float32 [K, h, w].

    Args:
        patches_ND: Patch embeddings row by row; need not be normalised.
        classes_KD: Class embeddings; need not be normalised.
        grid_hw: Patch rows and columns, with product N.

    Raises:
        ValueError: Shapes that do not fit together.
    """
    rows, columns = grid_hw
    if patches_ND.ndim != 2 or len(patches_ND) != rows * columns:
        raise ValueError(f"a grid of {rows} x {columns} does not fit {list(patches_ND.shape)}")
    if classes_KD.ndim != 2 or classes_KD.shape[1] != patches_ND.shape[1] or not len(classes_KD):
        raise ValueError(
            f"classes {list(classes_KD.shape)} do not fit patches {list(patches_ND.shape)}"
        )
    cosine_KN = l2_normalize(classes_KD) @ l2_normalize(patches_ND).T
    cosine_KHW: NDArray[np.float32] = cosine_KN.reshape(len(classes_KD), rows, columns)
    return cosine_KHW


def upsample_bilinear(
    maps_KHW: NDArray[np.float32], size_hw: tuple[int, int]
) -> NDArray[np.float32]:
    """Scale maps [K, h, w] to [K, H, W] as two matrix products, without antialiasing.

    Equal to torch's `interpolate(mode="bilinear", align_corners=False)`.
    """
    height, width = size_hw
    rows = bilinear_matrix(maps_KHW.shape[1], height)
    columns = bilinear_matrix(maps_KHW.shape[2], width)
    upsampled_KHW: NDArray[np.float32] = rows @ (maps_KHW @ columns.T)
    return upsampled_KHW


def bilinear_matrix(size_in: int, size_out: int) -> NDArray[np.float32]:
    """Weights [size_out, size_in] of linear interpolation between pixel centres; rows sum to 1."""
    centres = (np.arange(size_out) + 0.5) * (size_in / size_out) - 0.5
    centres = np.clip(centres, 0, size_in - 1)
    distance = np.abs(centres[:, None] - np.arange(size_in))
    weights: NDArray[np.float32] = np.maximum(0, 1 - distance).astype(np.float32)
    return weights


def segment(
    features_ND: NDArray[np.float32],
    classes_KD: NDArray[np.float32],
    *,
    grid_hw: tuple[int, int],
    size_hw: tuple[int, int],
    background_threshold: float | None = None,
) -> SegmentationMap:
    """Give every pixel the class whose text is nearest to its upsampled patch cosines.

    Args:
        features_ND: Patch embeddings (of the value path, where the model has one), row by row.
        classes_KD: One embedding per class, in the order of the labels.
        grid_hw: Patch rows and columns.
        size_hw: Height and width of the label map, in pixels.
        background_threshold: Pixels whose best cosine is below it become background; None for
            no background.

    Raises:
        ValueError: Shapes that do not fit together, a size below one pixel, or too many classes.
    """
    height, width = size_hw
    if height < 1 or width < 1:
        raise ValueError(f"a label map has at least one pixel, not {height} x {width}")
    if len(classes_KD) > MAX_CLASSES:
        raise ValueError(f"at most {MAX_CLASSES} classes fit a label map, not {len(classes_KD)}")
    cosine_Khw = cosine_map(features_ND, classes_KD, grid_hw)
    wide_KhW = cosine_Khw @ bilinear_matrix(grid_hw[1], width).T
    rows_Hh = bilinear_matrix(grid_hw[0], height)
    labels_HW = np.empty((height, width), dtype=np.uint16)
    score_HW = np.empty((height, width), dtype=np.float32)
    band = max(1, BAND_ELEMENTS // (len(classes_KD) * width))
    for top in range(0, height, band):
        part = slice(top, top + band)
        cosine_KHW = rows_Hh[part] @ wide_KhW
        labels_HW[part] = cosine_KHW.argmax(axis=0) + 1
        score_HW[part] = cosine_KHW.max(axis=0)
    if background_threshold is not None:
        labels_HW[score_HW < background_threshold] = 0
    return SegmentationMap(labels_HW=labels_HW, score_HW=score_HW)
