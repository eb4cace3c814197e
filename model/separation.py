"""Separate what a class names in one image from the rest of it, for masks with a background.

The cosine with a text says where a class is likely. The image itself tells it from its background
much better: the patches, and then the colours, of the likely part and of the rest have different
means, and every patch and place is nearer to one of the two.

Shapes: K maps, h w patch grid of N patches, D embedding width, Y X the grid of the maps, P its
places.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from model.segmentation import l2_normalize

Floats = NDArray[np.float32]

# Weight of a place in the mean of the likely part: 0.5 at this height between the least and the
# largest value of a map, and 0.73 one width above it.
LIKELY: Final = np.float32(0.75)
WIDTH: Final = np.float32(0.08)
# What colours add to a map or take from it at most, as a share of its range.
COLOUR_SHARE: Final = np.float32(0.2)
# Variance of a channel's noise in grey levels, so that even colours decide nothing.
NOISE: Final = np.float32(25)


def separate_patches(cosine_Khw: Floats, features_ND: Floats, least_cosine: float) -> Floats:
    """Replace cosines with a text by those with what the image shows of it; a new array.

    A map is the place of patches on the line through the two means, scaled to the map's range from
    the mean of the rest to the largest value.

    Args:
        cosine_Khw: Of each class.
        features_ND: Patch embeddings, row by row; need not be normalised.
        least_cosine: A map whose largest value is lower stays as it is: its class is absent.
    """
    unit_ND = l2_normalize(features_ND)
    height_KN, lowest_K1, range_K1 = _heights(cosine_Khw)
    likely_KD, rest_KD = _means(height_KN, unit_ND)
    axis_KD = likely_KD - rest_KD
    along_KN = axis_KD @ unit_ND.T - np.vecdot(axis_KD, rest_KD)[:, None]
    along_KN /= np.maximum(along_KN.max(axis=1, keepdims=True), np.float32(1e-9))
    along_KN *= range_K1
    along_KN += lowest_K1
    return _present(cosine_Khw, along_KN, least_cosine)


def separate_places(maps_KYX: Floats, guide_3YX: NDArray[np.uint8], least_cosine: float) -> Floats:
    """Raise maps where colours are those of a class, and lower them elsewhere; a new array.

    Args:
        maps_KYX: Of each class, on the grid of the guide or a coarser one.
        guide_3YX: The colours of the image, see `model.outlines.make_guide`.
        least_cosine: See `separate_patches`.

    Source: linear discriminant analysis (R. A. Fisher, 1936), with the covariance of all colours.
    """
    rows, columns = maps_KYX.shape[1:]
    side = guide_3YX.shape[1] // rows
    blocks = guide_3YX.reshape(3, rows, side, columns, side)
    colour_P3 = blocks.mean(axis=(2, 4), dtype=np.float32).reshape(3, -1).T
    colour_P3 = colour_P3 - colour_P3.mean(axis=0)
    covariance_33 = colour_P3.T @ colour_P3 / len(colour_P3) + NOISE * np.eye(3, dtype=np.float32)
    height_KP, lowest_K1, range_K1 = _heights(maps_KYX)
    likely_K3, rest_K3 = _means(height_KP, colour_P3)
    axis_K3 = np.linalg.solve(covariance_33, (likely_K3 - rest_K3).T).T
    odds_KP = axis_K3 @ colour_P3.T - np.vecdot(axis_K3, likely_K3 + rest_K3)[:, None] / 2
    height_KP += COLOUR_SHARE * np.tanh(odds_KP / 2)
    height_KP *= range_K1
    height_KP += lowest_K1
    return _present(maps_KYX, height_KP, least_cosine)


def _heights(maps_KYX: Floats) -> tuple[Floats, Floats, Floats]:
    """Values [K, P] from 0 for the least to 1 for the largest of a map; its least, its range."""
    value_KP = maps_KYX.reshape(len(maps_KYX), -1)
    lowest_K1 = value_KP.min(axis=1, keepdims=True)
    range_K1 = value_KP.max(axis=1, keepdims=True) - lowest_K1
    return (value_KP - lowest_K1) / np.maximum(range_K1, np.float32(1e-9)), lowest_K1, range_K1


def _means(height_KP: Floats, values_PD: Floats) -> tuple[Floats, Floats]:
    """Mean of the likely part of each map, [K, D], and of the rest."""
    weight_KP = 1 / (1 + np.exp((LIKELY - height_KP) / WIDTH))
    total_K1, sum_KD = weight_KP.sum(axis=1, keepdims=True), weight_KP @ values_PD
    return sum_KD / total_K1, (values_PD.sum(axis=0) - sum_KD) / (len(values_PD) - total_K1)


def _present(before_KYX: Floats, after_KP: Floats, least_cosine: float) -> Floats:
    absent_K = before_KYX.max(axis=(1, 2)) < least_cosine
    after_KYX = after_KP.reshape(before_KYX.shape)
    after_KYX[absent_K] = before_KYX[absent_K]
    return after_KYX
