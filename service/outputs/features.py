"""Visualizations of patch embeddings: principal components and groups of similar patches.

A view is fitted once for a request and then drawn for each image. Components equal scikit-learn's
`PCA(whiten=True)`; groups are found by k-means, and the same seed gives the same groups.

Shape legend: N patches, D width, h w patch grid, H W pixels of the map, C components or channels,
K groups.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from model.outlines import outline
from model.segmentation import bilinear_matrix, label_pixels
from service.messages import FeatureKind, FloatArray, VisualizeFeaturesRequest
from service.outputs.colours import COLOUR_SCALE, levels_between
from service.outputs.maps import SMOOTH
from service.outputs.masks import encode_mask_png
from service.outputs.png import BAND_PIXELS, write_png

# From embeddings [N, D] to values [N, C].
Projection = Callable[[FloatArray], FloatArray]
# From embeddings [N, D], grid, size, and the guide of `model.outlines` if the map follows one, to
# the map [H, W] or [H, W, 3].
Guide = NDArray[np.uint8] | None
View = Callable[[FloatArray, tuple[int, int], tuple[int, int], Guide], NDArray[Any]]
DEFAULT_GROUPS: Final = 6
# Slope of the sigmoid that maps whitened components to colours.
STEEPNESS: Final = np.float32(2)
HALF: Final = np.float32(0.5)
# Share of the greatest variance. Below it there is only rounding, which whitening would amplify.
LEAST_VARIANCE: Final = 1e-10
MAX_ITERATIONS: Final = 20


def fit_view(request: VisualizeFeaturesRequest, features: Sequence[FloatArray]) -> View:
    """Fit components or groups to all of these embeddings [N, D].

    Source: colours are `sigmoid(2 x)` of PCA(3, whiten), as in the demonstration notebook of
    google-deepmind/tips; the first component from least to greatest, and groups by distances that
    are scaled before they are compared, as in its demonstration page.
    """
    all_ND = features[0] if len(features) == 1 else np.concatenate(features)
    values_of = _fit_values(request, all_ND)

    def view(
        features_ND: FloatArray, grid_hw: tuple[int, int], size_hw: tuple[int, int], guide: Guide
    ) -> NDArray[Any]:
        maps_Chw = values_of(features_ND).T.reshape(-1, *grid_hw)
        if guide is not None:
            maps_Chw = outline(maps_Chw, guide)
        if request.kind == "groups":
            nearness_hwK = np.ascontiguousarray(np.moveaxis(maps_Chw, 0, -1))
            found = label_pixels(nearness_hwK, size_hw, with_scores=False)
            return found.labels_HW.astype(np.uint16, copy=False)
        scaled_HWC = _scale(maps_Chw, size_hw)
        return scaled_HWC[..., 0] if request.kind == "component" else scaled_HWC

    return view


def _fit_values(request: VisualizeFeaturesRequest, all_ND: FloatArray) -> Projection:
    """From embeddings to a colour, to a share from 0 to 1, or to the nearness of each group."""
    if request.kind == "groups":
        num_groups = DEFAULT_GROUPS if request.group_count is None else request.group_count
        centres_KD = find_groups(all_ND, num_groups, request.seed or 0)
        return lambda features_ND: -np.sqrt(squared_distances(features_ND, centres_KD))
    if request.kind == "colors":
        project = fit_components(all_ND, 3)
        # The sigmoid by tanh, which never overflows.
        return lambda features_ND: np.tanh(STEEPNESS / 2 * project(features_ND)) / 2 + HALF
    project_first = fit_components(all_ND, 1)
    projected_N1 = project_first(all_ND)
    least, span = projected_N1.min(), np.ptp(projected_N1) or np.float32(1)
    return lambda features_ND: np.clip((project_first(features_ND) - least) / span, 0, 1)


def _scale(maps_Chw: FloatArray, size_hw: tuple[int, int]) -> FloatArray:
    """Scale bilinearly to the size of the map, [H, W, C]."""
    grid_hw = maps_Chw.shape[1:]
    if grid_hw == size_hw:
        return np.ascontiguousarray(np.moveaxis(maps_Chw, 0, -1))
    height, width = size_hw
    wide_ChW = maps_Chw @ bilinear_matrix(grid_hw[1], width).T
    rows_Hh = bilinear_matrix(grid_hw[0], height)
    scaled_HWC = np.empty((height, width, len(maps_Chw)), np.float32)
    num_rows = max(1, BAND_PIXELS // width)
    for top in range(0, height, num_rows):
        band = slice(top, top + num_rows)
        scaled_HWC[band] = np.moveaxis(rows_Hh[band] @ wide_ChW, 0, -1)
    return scaled_HWC


def encode_view_png(features: NDArray[Any], kind: FeatureKind) -> bytes:
    """Encode colours as RGB, a component from dark violet to pale yellow, groups as a mask."""
    if kind == "groups":
        return encode_mask_png(features)
    ends, palette = ((1, 0), COLOUR_SCALE.tobytes()) if kind == "component" else ((0, 1), b"")
    return write_png(
        features.shape[:2],
        lambda rows: levels_between(features[rows], *ends),
        palette,
        strategy=SMOOTH,
    )


def fit_components(features_ND: FloatArray, count: int) -> Projection:
    """Fit the axes of greatest variance; surplus axes are zero.

    The largest weight of each axis is positive, so that the same patches give the same axes.

    Returns:
        From embeddings [N, D] to whitened coordinates [N, C]: mean 0 and deviation 1 over the
        fitted patches.
    """
    exact_ND = features_ND.astype(np.float64)
    mean_D: NDArray[np.float64] = exact_ND.mean(axis=0)
    centred_ND = exact_ND - mean_D
    num_patches, width = centred_ND.shape
    # The smaller of the two square matrices has the same eigenvalues.
    is_wide = num_patches < width
    square = centred_ND @ centred_ND.T if is_wide else centred_ND.T @ centred_ND
    values, vectors = np.linalg.eigh(square)
    variances = values[::-1][:count] / max(num_patches - 1, 1)
    axes_DC = np.zeros((width, count))
    for index, variance in enumerate(variances):
        if variance <= LEAST_VARIANCE * variances[0] or variance <= 0:
            break
        axis_D = vectors[:, -1 - index]
        axis_D = centred_ND.T @ axis_D if is_wide else axis_D
        axis_D = axis_D / np.linalg.norm(axis_D) * np.sign(axis_D[np.abs(axis_D).argmax()])
        axes_DC[:, index] = axis_D / np.sqrt(variance)
    origin_D, scaled_DC = mean_D.astype(np.float32), axes_DC.astype(np.float32)
    return lambda patches_ND: np.asarray((patches_ND - origin_D) @ scaled_DC, np.float32)


def find_groups(features_ND: FloatArray, num_groups: int, seed: int) -> FloatArray:
    """Centres [K, D] of the groups, the largest group first.

    With fewer distinct patches than groups, some groups are empty.
    """
    first_KD = first_centres(features_ND, num_groups, np.random.default_rng(seed))
    centres_KD, nearest_N = move_centres(features_ND, first_KD)
    sizes_K = np.bincount(nearest_N, minlength=num_groups)
    return centres_KD[np.argsort(-sizes_K, kind="stable")]


def first_centres(
    features_ND: FloatArray, num_groups: int, random: np.random.Generator
) -> FloatArray:
    """Choose patches as first centres [K, D], with a preference for distant ones.

    Source: k-means++ (D. Arthur, S. Vassilvitskii, 2007).
    """
    chosen = [int(random.integers(len(features_ND)))]
    gap_N = np.full(len(features_ND), np.inf)
    for _ in range(num_groups - 1):
        newest_1D = features_ND[chosen[-1:]]
        gap_N = np.minimum(gap_N, squared_distances(features_ND, newest_1D)[:, 0])
        total = gap_N.sum()
        if total > 0:
            reached_N = np.cumsum(gap_N)
            index = int(np.searchsorted(reached_N, random.random() * total, side="right"))
            chosen.append(min(index, len(features_ND) - 1))
        else:  # every patch is a centre already
            chosen.append(chosen[-1])
    return features_ND[chosen]


def move_centres(
    features_ND: FloatArray, centres_KD: FloatArray
) -> tuple[FloatArray, NDArray[np.intp]]:
    """Run Lloyd's algorithm until nothing changes, for at most 20 iterations.

    Returns:
        Centres [K, D], and the index of the nearest centre of each patch [N]. The centre of an
        empty group does not move.
    """
    nearest_N = squared_distances(features_ND, centres_KD).argmin(axis=1)
    for _ in range(MAX_ITERATIONS):
        member_KN = nearest_N == np.arange(len(centres_KD))[:, None]
        sizes_K1 = member_KN.sum(axis=1, keepdims=True)
        means_KD = (member_KN.astype(np.float32) @ features_ND) / np.maximum(sizes_K1, 1)
        centres_KD = np.where(sizes_K1 > 0, means_KD, centres_KD).astype(np.float32)
        before_N = nearest_N
        nearest_N = squared_distances(features_ND, centres_KD).argmin(axis=1)
        if np.array_equal(before_N, nearest_N):
            break
    return centres_KD, nearest_N


def squared_distances(features_ND: FloatArray, centres_KD: FloatArray) -> FloatArray:
    """Squared distance from every patch to every centre [N, K]."""
    # Far from the origin the squares would cancel and leave only rounding.
    origin_D = centres_KD.mean(axis=0)
    patches_ND, centred_KD = features_ND - origin_D, centres_KD - origin_D
    squares_NK = (
        np.vecdot(patches_ND, patches_ND)[:, None]
        - 2 * (patches_ND @ centred_KD.T)
        + np.vecdot(centred_KD, centred_KD)
    )
    distances_NK: FloatArray = np.maximum(squares_NK, np.float32(0))
    return distances_NK
