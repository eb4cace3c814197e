"""Zero-shot segmentation: a label map from embeddings of patches and texts.

Shapes: N patches, D embedding width, P prompts of one class, K classes, V vectors of all classes;
H W pixels of the image, h w patch rows and columns.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.winner_map import Labels, WinnerMap, count_labels, find_winners

# uint16 labels: one is for the background, and one may be for the threshold.
MAX_CLASSES = np.iinfo(np.uint16).max - 1
# Cosines in memory at a time when all classes are evaluated at all pixels: 16 MiB of float32.
BAND_ELEMENTS = 4 * 1024 * 1024
# Rows of pixels at a time: few stay in the CPU's cache, and lie between few rows of the maps.
BAND_ROWS = 32
# With fewer pixels per patch, or with scores of fewer classes, evaluating all cosines was measured
# as faster.
FEW_PIXELS = 12
FEW_SCORED_CLASSES = 16
# With a level of the background: a class at more than this share of the places is stuff, such as
# sky or grass, which fills its region evenly; its level falls by what is above, down to the least.
PEAKED_SHARE = 0.2
LEAST_LEVEL = 0.3
# NumPy computes so many elements without releasing Python's lock (NPY_BEGIN_THREADS_THRESHOLDED).
LOCKED_ELEMENTS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Background:
    """What counts as background.

    Attributes:
        threshold: Pixels whose best cosine is lower are background; None for no threshold.
        num_classes: This many of the last classes are background classes.
        level: From 0 to 1: a pixel is background if its best class has a cosine below this level
            between the least and the largest cosine of the class in the image; lower for a class
            that is likely at many places, see `PEAKED_SHARE`. None for none.
        least_cosine: With a level, a class whose largest cosine is lower is absent.
    """

    threshold: float | None = None
    num_classes: int = 0
    level: float | None = None
    least_cosine: float = -1.0

    def floors(self, value_Khw: NDArray[np.float32]) -> NDArray[np.float32] | None:
        """The cosine that a pixel of each class has at least, [K]; None without such a rule.

        Args:
            value_Khw: Cosines of all classes, background classes included, over the image.
        """
        num_classes = len(value_Khw)
        if self.threshold is not None:
            return np.full(num_classes, self.threshold, np.float32)
        if self.level is None:
            return None
        value_KN = value_Khw.reshape(num_classes, -1)
        lowest_K, highest_K = value_KN.min(axis=1), value_KN.max(axis=1)
        range_K = highest_K - lowest_K
        share_K = (value_KN > (lowest_K + range_K / 2)[:, None]).mean(axis=1, dtype=np.float32)
        level_K = self.level - np.maximum(share_K - np.float32(PEAKED_SHARE), 0)
        level_K = np.maximum(level_K, np.float32(min(self.level, LEAST_LEVEL)))
        floor_K: NDArray[np.float32] = lowest_K + level_K * range_K
        floor_K[highest_K < self.least_cosine] = np.inf
        floor_K[num_classes - self.num_classes :] = -np.inf
        return floor_K


NO_BACKGROUND = Background()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SegmentationMap:
    """A label for every pixel.

    Attributes:
        labels_HW: 0 for background, k for the k-th class; uint8 if that is large enough, or uint16.
        counts: Pixels of background and then of each class.
        score_HW: float32; cosine of the best class, also where the label is background, if asked.
        cosine_Khw: float32; cosine of every class, then every background class, at every patch.
        floor_K: Cosine that a pixel of each of these has at least; None without such a rule.
    """

    labels_HW: Labels
    counts: NDArray[np.int64]
    score_HW: NDArray[np.float32] | None
    cosine_Khw: NDArray[np.float32] | None
    floor_K: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class PooledClasses:
    """Classes with several vectors each: a patch's cosine with a class is that of the best one.

    Unit vectors of one class follow those of the class before; a shorter one has a handicap.
    """

    vectors_VD: NDArray[np.float32]
    sizes: Sequence[int]

    def __len__(self) -> int:
        return len(self.sizes)

    def cosines(self, unit_ND: NDArray[np.float32]) -> NDArray[np.float32]:
        """Cosine of every class with every unit vector, [K, N], in bands of bounded memory."""
        if len(self.vectors_VD) == len(self):
            return self.vectors_VD @ unit_ND.T
        first = np.cumsum([0, *self.sizes[:-1]])
        best_KN = np.empty((len(self), len(unit_ND)), np.float32)
        band = max(1, BAND_ELEMENTS // len(self.vectors_VD))
        for begin in range(0, len(unit_ND), band):
            part = slice(begin, begin + band)
            cosine_Vn = self.vectors_VD @ unit_ND[part].T
            np.maximum.reduceat(cosine_Vn, first, axis=0, out=best_KN[:, part])
        return best_KN


Classes = NDArray[np.float32] | PooledClasses


def l2_normalize(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale vectors on the last axis to unit length; zero vectors stay zero. float32.

    A single vector takes calls that keep Python's lock: in a busy server another thread takes it
    otherwise, and that costs five times as much as the arithmetic.
    """
    starts = range(0, max(1, x.shape[-1]), LOCKED_ELEMENTS)
    if x.ndim == 1:  # the same numbers as below
        unit_D, square = x.copy(), 0.0
        for i in starts:
            part_D = unit_D[i : i + LOCKED_ELEMENTS]
            square += float(np.vecdot(part_D, part_D))
        length = max(math.sqrt(square), 1e-12)
        for i in starts:
            unit_D[i : i + LOCKED_ELEMENTS] /= length
        return unit_D
    parts = [x[..., i : i + LOCKED_ELEMENTS] for i in starts]
    squares = sum([np.vecdot(part, part).astype(np.float64) for part in parts])
    lengths = np.sqrt(squares)[..., None].astype(np.float32)
    unit: NDArray[np.float32] = x / np.maximum(lengths, np.float32(1e-12))
    return unit


def average_prompts(text_PD: NDArray[np.float32]) -> NDArray[np.float32]:
    """One embedding [D] for a class: normalise each prompt, average, normalise again."""
    averaged: NDArray[np.float32] = average_groups(text_PD, [len(text_PD)])[0]
    return averaged


def average_groups(text_PD: NDArray[np.float32], sizes: Sequence[int]) -> NDArray[np.float32]:
    """One embedding [K, D] for each class; see `average_prompts`.

    Args:
        text_PD: The prompts of all classes, one class after the other.
        sizes: How many prompts each class has, at least one.
    """
    unit_PD = l2_normalize(text_PD)
    if len(unit_PD) == len(sizes):
        return unit_PD
    first = np.cumsum([0, *sizes[:-1]])
    return l2_normalize(np.add.reduceat(unit_PD, first, axis=0))  # a mean points the same way


def cosine_map(
    patches_ND: NDArray[np.float32], classes: Classes, grid_hw: tuple[int, int]
) -> NDArray[np.float32]:
    """Cosine of every patch with every class: float32 [K, h, w]; ValueError if shapes do not match.

    Args:
        patches_ND: Patch embeddings row by row; need not be normalised.
        classes: One embedding [K, D] per class, which need not be normalised; or several.
        grid_hw: Patch rows and columns, with product N.
    """
    rows, columns = grid_hw
    if patches_ND.ndim != 2 or len(patches_ND) != rows * columns:
        raise ValueError(f"a grid of {rows} x {columns} does not fit {list(patches_ND.shape)}")
    vectors_VD = classes.vectors_VD if isinstance(classes, PooledClasses) else classes
    if vectors_VD.ndim != 2 or vectors_VD.shape[1] != patches_ND.shape[1] or not len(vectors_VD):
        raise ValueError(
            f"classes {list(vectors_VD.shape)} do not fit patches {list(patches_ND.shape)}"
        )
    unit_ND = l2_normalize(patches_ND)
    if isinstance(classes, PooledClasses):
        return classes.cosines(unit_ND).reshape(len(classes), rows, columns)
    return (l2_normalize(classes) @ unit_ND.T).reshape(len(classes), rows, columns)


def patch_shares(
    labels_HW: NDArray[np.int64], grid_hw: tuple[int, int], num_classes: int
) -> NDArray[np.float32]:
    """Share of each class in the pixels of each patch: float32 [N, K], N patches row by row.

    Args:
        labels_HW: Class of each pixel from 0; negative where there is no label. Patches of a grid
            that does not divide the image share its rows and columns evenly.
        grid_hw: Patch rows and columns.
        num_classes: K.
    """
    (height, width), (rows, columns) = labels_HW.shape, grid_hw
    row_H = (np.arange(height) + 0.5) * rows // height
    column_W = (np.arange(width) + 0.5) * columns // width
    patch_HW = (row_H[:, None] * columns + column_W).astype(np.int64)
    num_patches = rows * columns
    pixels_N = np.bincount(patch_HW.ravel(), minlength=num_patches)
    keep_HW = labels_HW >= 0
    cell = patch_HW[keep_HW] * num_classes + labels_HW[keep_HW]
    count_NK = np.bincount(cell, minlength=num_patches * num_classes).reshape(-1, num_classes)
    return (count_NK / np.maximum(pixels_N, 1)[:, None]).astype(np.float32)


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
    centres = pixel_centres(size_in, size_out)
    distance = np.abs(centres[:, None] - np.arange(size_in))
    weights: NDArray[np.float32] = np.maximum(0, 1 - distance).astype(np.float32)
    return weights


def pixel_centres(size_in: int, size_out: int) -> NDArray[np.float64]:
    """Place of each of `size_out` pixels between the centres of `size_in` patches, from 0."""
    return np.clip((np.arange(size_out) + 0.5) * (size_in / size_out) - 0.5, 0, size_in - 1)


def segment(
    features_ND: NDArray[np.float32],
    classes: Classes,
    *,
    grid_hw: tuple[int, int],
    size_hw: tuple[int, int],
    background: Background = NO_BACKGROUND,
    with_scores: bool = False,
) -> SegmentationMap:
    """Label every pixel with the class of the highest upsampled cosine.

    Args:
        features_ND: Patch embeddings, row by row; usually those of the value path.
        classes: One embedding [K, D] per class, or several, in the order of the labels.
        grid_hw: Patch rows and columns.
        size_hw: Height and width of the label map, in pixels.
        background: What counts as background.
        with_scores: Whether to return the best cosine of every pixel.

    Raises:
        ValueError: The shapes do not match, a size is below one pixel, or there are too many
            classes.
    """
    height, width = size_hw
    if height < 1 or width < 1:
        raise ValueError(f"a label map has at least one pixel, not {height} x {width}")
    if len(classes) > MAX_CLASSES:
        raise ValueError(f"at most {MAX_CLASSES} classes fit a label map, not {len(classes)}")
    cosine_Khw = cosine_map(features_ND, classes, grid_hw)
    return label_maps(cosine_Khw, size_hw, background=background, with_scores=with_scores)


def label_maps(
    cosine_Khw: NDArray[np.float32],
    size_hw: tuple[int, int],
    *,
    background: Background = NO_BACKGROUND,
    with_scores: bool = False,
) -> SegmentationMap:
    """Label every pixel with the class of the highest upsampled cosine.

    Args:
        cosine_Khw: Of each class, then of each background class, on a grid over the image.
        size_hw: Height and width of the label map, in pixels.
        background: What counts as background.
        with_scores: Whether to return the best cosine of every pixel.
    """
    floor_K = background.floors(cosine_Khw)
    value_hwK = np.ascontiguousarray(np.moveaxis(cosine_Khw, 0, -1))
    found = label_pixels(value_hwK, size_hw, with_scores=with_scores, floor_K=floor_K)
    labels_HW, counts = found.labels_HW, found.counts
    num_classes = len(cosine_Khw) - background.num_classes
    if background.num_classes:
        labels_HW *= labels_HW <= num_classes
        counts[0] += counts[num_classes + 1 :].sum()
    return SegmentationMap(
        labels_HW=labels_HW,
        counts=counts[: num_classes + 1],
        score_HW=found.score_HW,
        cosine_Khw=cosine_Khw,
        floor_K=floor_K,
    )


def label_pixels(
    value_hwK: NDArray[np.float32],
    size_hw: tuple[int, int],
    *,
    with_scores: bool,
    floor_K: NDArray[np.float32] | None = None,
) -> WinnerMap:
    """Find the best class of every pixel of upsampled maps, by the faster of two algorithms.

    Pixels whose best class has a value below its floor have the label 0.
    """
    rows, columns, num_classes = value_hwK.shape
    num_pixels = size_hw[0] * size_hw[1]
    has_large_patches = num_pixels >= FEW_PIXELS * rows * columns
    if has_large_patches and num_classes >= (FEW_SCORED_CLASSES if with_scores else 1):
        return find_winners(value_hwK, size_hw, with_scores=with_scores, floor_K=floor_K)
    return compare_everywhere(value_hwK, size_hw, with_scores=with_scores, floor_K=floor_K)


def compare_everywhere(
    value_hwK: NDArray[np.float32],
    size_hw: tuple[int, int],
    *,
    with_scores: bool,
    floor_K: NDArray[np.float32] | None = None,
) -> WinnerMap:
    """Find the best class of every pixel from the values of all classes at all pixels."""
    rows, columns, num_classes = value_hwK.shape
    found = WinnerMap.empty(num_classes, size_hw, with_scores=with_scores)
    wide_KhW = value_hwK.transpose(2, 0, 1) @ bilinear_matrix(columns, size_hw[1]).T
    rows_Hh = bilinear_matrix(rows, size_hw[0])
    centre_H = pixel_centres(rows, size_hw[0])
    band = min(BAND_ROWS, max(1, BAND_ELEMENTS // (num_classes * size_hw[1])))
    for top in range(0, size_hw[0], band):
        part = slice(top, top + band)
        used = slice(int(centre_H[top]), int(centre_H[part][-1]) + 2)
        labels_HW = found.labels_HW[part]
        best_HW = take_best(rows_Hh[part, used] @ wide_KhW[:, used], labels_HW)
        if floor_K is not None:
            labels_HW[best_HW < floor_K.take(labels_HW - 1)] = 0
        if found.score_HW is not None:
            found.score_HW[part] = best_HW
    found.counts[:] = count_labels(found.labels_HW, num_classes + 1)
    return found


def take_best(value_KHW: NDArray[np.float32], labels_HW: Labels) -> NDArray[np.float32]:
    """Write the label of the highest value at each pixel, from 1; returns the highest values.

    The first of equal ones counts. Two to six times as fast as `argmax` over the first axis.
    """
    best_HW: NDArray[np.float32] = value_KHW[0].copy()
    labels_HW[:] = 1
    for label, value_HW in enumerate(value_KHW[1:], start=2):
        labels_HW[value_HW > best_HW] = label
        np.maximum(best_HW, value_HW, out=best_HW)
    return best_HW
