"""Segmentation by overlapping windows of an image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from model.segmentation import (
    Background,
    Classes,
    SegmentationMap,
    bilinear_matrix,
    cosine_map,
    pixel_centres,
)
from model.winner_map import WinnerMap
from service.images import Windows
from service.messages import FloatArray
from service.waiting import Steps

# Memory bound: values of all classes for some rows of the mask, 16 MiB of float32.
BAND_ELEMENTS: Final = 4 * 1024 * 1024
# Larger bands need more multiplications for each pixel than they save.
BAND_ROWS: Final = 64


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sizes of an image and of what the model sees of it.

    Attributes:
        grid_hw: Patch rows and columns of the image, or of each window.
        size_hw: Height and width of the mask, in pixels.
        scaled_hw: Height and width after scaling, in pixels.
        windows: Windows of the scaled image; None if the model sees it whole.
    """

    grid_hw: tuple[int, int]
    size_hw: tuple[int, int]
    scaled_hw: tuple[int, int] = (0, 0)
    windows: Windows | None = None

    @property
    def whole_grid_hw(self) -> tuple[int, int]:
        """Patch rows and columns of the whole scaled image."""
        if self.windows is None:
            return self.grid_hw
        patch_size = self.windows.side // self.grid_hw[0]
        return -(-self.scaled_hw[0] // patch_size), -(-self.scaled_hw[1] // patch_size)


def segment_windows(
    features: Sequence[FloatArray],
    classes: Classes,
    geometry: Geometry,
    background: Background,
    *,
    with_scores: bool,
    cosines_KHW: FloatArray | None = None,
) -> Steps[SegmentationMap]:
    """Segment one image at the size of its mask, in a step for each band of rows.

    Args:
        features: Patch embeddings [N, D] of every window, row by row.
        classes: Of each class, then of each background class.
        geometry: Sizes and windows.
        background: Its threshold is a cosine, as for a whole image: a probability without a
            temperature depends on the number of classes more than on the image.
        with_scores: Whether to return the winner's mean cosine for every pixel.
        cosines_KHW: Filled with the mean cosines of the first K classes, if given.

    Source: google-deepmind/tips, zero-shot segmentation notebook: cosines scaled bilinearly to the
    window's pixels, softmax over classes without a temperature, sum over windows divided by their
    number, scaled bilinearly, the greatest.
    """
    height, width = geometry.size_hw
    cosines = [cosine_map(f_ND, classes, geometry.grid_hw) for f_ND in features]
    found = WinnerMap.empty(len(classes), geometry.size_hw, with_scores=with_scores)
    num_rows = min(BAND_ROWS, max(1, BAND_ELEMENTS // (len(classes) * width)))
    rows = bilinear_matrix(geometry.scaled_hw[0], height)
    num_classes = len(classes) - background.num_classes
    mean_Khw = _mean_at_patches(cosines, geometry)
    floor_K = background.floors(mean_Khw)
    needs_scores = with_scores or floor_K is not None or cosines_KHW is not None
    for top in range(0, height, num_rows):
        band = slice(top, top + num_rows)
        used = np.flatnonzero(rows[band].sum(axis=0))
        weights = rows[band, used[0] : used[-1] + 1]
        pixels_yx = np.arange(used[0], used[-1] + 1), np.arange(geometry.scaled_hw[1])
        mean_KRS = _mean_over_windows(cosines, geometry, pixels_yx, as_probabilities=True)
        winner_HW = (weights @ _widen(mean_KRS, width)).argmax(axis=0)
        labels_HW = np.where(winner_HW < num_classes, winner_HW + 1, 0)
        if needs_scores:
            mean_KRS = _mean_over_windows(cosines, geometry, pixels_yx, as_probabilities=False)
            value_KHW = weights @ _widen(mean_KRS, width)
            if cosines_KHW is not None:
                cosines_KHW[:, band] = value_KHW[: len(cosines_KHW)]
            score_HW = np.take_along_axis(value_KHW, winner_HW[None], axis=0)[0]
            if floor_K is not None:
                labels_HW[score_HW < floor_K[winner_HW]] = 0
        found.labels_HW[band] = labels_HW
        # Over the whole mask, NumPy would count a copy in 64 bits.
        found.counts[:] += np.bincount(labels_HW.ravel(), minlength=len(found.counts))
        if found.score_HW is not None:
            found.score_HW[band] = score_HW
        yield
    counts = found.counts[: num_classes + 1]
    return SegmentationMap(
        labels_HW=found.labels_HW,
        counts=counts,
        score_HW=found.score_HW,
        cosine_Khw=mean_Khw,
        floor_K=floor_K,
    )


def _mean_at_patches(cosines: Sequence[FloatArray], geometry: Geometry) -> FloatArray:
    """Mean cosines over windows at every patch of the whole image, [K, h, w]."""
    # The pixel at the centre of each patch.
    y_h, x_w = (
        pixel_centres(length, count).round().astype(np.intp)
        for length, count in zip(geometry.scaled_hw, geometry.whole_grid_hw, strict=True)
    )
    return _mean_over_windows(cosines, geometry, (y_h, x_w), as_probabilities=False)


def _mean_over_windows(
    cosines: Sequence[FloatArray],
    geometry: Geometry,
    pixels_yx: tuple[NDArray[np.intp], NDArray[np.intp]],
    *,
    as_probabilities: bool,
) -> FloatArray:
    """Mean cosines, or probabilities, over windows at some rows and columns, [K, R, S].

    The rows and columns are of the scaled image, in ascending order.
    """
    assert geometry.windows is not None
    side, (y_R, x_S) = geometry.windows.side, pixels_yx
    down, across = (bilinear_matrix(count, side) for count in geometry.grid_hw)
    sum_KRS = np.zeros((len(cosines[0]), len(y_R), len(x_S)), np.float32)
    hits_RS = np.zeros((len(y_R), len(x_S)), np.float32)
    corners = geometry.windows.corners(geometry.scaled_hw)
    for cosine_Khw, (top, left) in zip(cosines, corners, strict=True):
        rows = slice(*np.searchsorted(y_R, (top, top + side)))
        if rows.start == rows.stop:
            continue
        columns = slice(*np.searchsorted(x_S, (left, left + side)))
        value_KRS = down[y_R[rows] - top] @ cosine_Khw @ across[x_S[columns] - left].T
        if as_probabilities:
            np.exp(value_KRS, out=value_KRS)  # exp of a cosine cannot overflow
            value_KRS /= value_KRS.sum(axis=0)
        sum_KRS[:, rows, columns] += value_KRS
        hits_RS[rows, columns] += 1
    sum_KRS /= hits_RS
    return sum_KRS


def _widen(values_KRS: FloatArray, width: int) -> FloatArray:
    """Scale bilinearly to the mask's width, [K, R, W]; each column mixes two columns only."""
    narrow = values_KRS.shape[2]
    if narrow == width:
        return values_KRS
    centres = np.clip((np.arange(width) + 0.5) * (narrow / width) - 0.5, 0, narrow - 1)
    left: NDArray[np.intp] = np.minimum(centres.astype(np.intp), max(narrow - 2, 0))
    share = (centres - left).astype(np.float32)
    right = np.minimum(left + 1, narrow - 1)
    widened: FloatArray = values_KRS[..., left] * (1 - share)
    widened += values_KRS[..., right] * share
    return widened
