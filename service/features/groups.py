"""Groups of patches that are alike, by k-means; the same seed gives the same groups.

Shape legend: N patches, D width, K groups.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from service.messages import FloatArray

MAX_ITERATIONS: Final = 20


def find_groups(features_ND: FloatArray, num_groups: int, seed: int) -> FloatArray:
    """The centres [K, D] of groups, the largest group first.

    Where there are fewer different patches than groups, some groups stay empty.
    """
    first_KD = first_centres(features_ND, num_groups, np.random.default_rng(seed))
    centres_KD, nearest_N = move_centres(features_ND, first_KD)
    sizes_K = np.bincount(nearest_N, minlength=num_groups)
    return centres_KD[np.argsort(-sizes_K, kind="stable")]


def first_centres(
    features_ND: FloatArray, num_groups: int, random: np.random.Generator
) -> FloatArray:
    """Patches as first centres [K, D], far from each other more likely than near.

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
    """Lloyd's iterations, until nothing changes or there were 20.

    Returns:
        The centres [K, D], and for each patch the nearest of them [N]. The centre of a group that
        has become empty stays where it is.
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
    """From every patch to every centre [N, K]."""
    # Far from the origin, squares would cancel and leave nothing but rounding.
    origin_D = centres_KD.mean(axis=0)
    patches_ND, centred_KD = features_ND - origin_D, centres_KD - origin_D
    squares_NK = (
        np.vecdot(patches_ND, patches_ND)[:, None]
        - 2 * (patches_ND @ centred_KD.T)
        + np.vecdot(centred_KD, centred_KD)
    )
    distances_NK: FloatArray = np.maximum(squares_NK, np.float32(0))
    return distances_NK
