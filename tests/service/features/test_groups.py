"""Groups of patches against scikit-learn's k-means."""

import numpy as np
import pytest
from sklearn.cluster import KMeans

from service.outputs.features import (
    MAX_ITERATIONS,
    find_groups,
    first_centres,
    move_centres,
    squared_distances,
)

FEATURES = np.random.default_rng(0).standard_normal((200, 16)).astype(np.float32) + 5


@pytest.mark.parametrize("num_groups", [2, 6, 20])
def test_from_the_same_centres_groups_are_those_of_scikit_learn(num_groups: int) -> None:
    first_KD = first_centres(FEATURES, num_groups, np.random.default_rng(1))
    judge = KMeans(num_groups, init=first_KD, n_init=1, max_iter=MAX_ITERATIONS, tol=0)
    labels_N = judge.fit(FEATURES).labels_
    centres_KD, nearest_N = move_centres(FEATURES, first_KD)
    np.testing.assert_array_equal(nearest_N, labels_N)
    np.testing.assert_allclose(centres_KD, judge.cluster_centers_, atol=1e-4)


def test_a_seed_gives_the_same_groups_and_the_largest_comes_first() -> None:
    once, again = (find_groups(FEATURES, 5, 3) for _ in range(2))
    np.testing.assert_array_equal(once, again)
    sizes_K = np.bincount(squared_distances(FEATURES, once).argmin(axis=1), minlength=5)
    assert sizes_K.tolist() == sorted(sizes_K.tolist(), reverse=True)
    assert not np.array_equal(once, find_groups(FEATURES, 5, 4))


def test_clear_groups_are_found_whatever_the_seed() -> None:
    spots_KD = 100 * np.eye(4, dtype=np.float32)
    noise_ND = np.random.default_rng(0).random((24, 4), np.float32)
    points_ND = np.repeat(spots_KD, [9, 7, 5, 3], axis=0) + noise_ND
    for seed in range(5):
        centres_KD = find_groups(points_ND, 4, seed)
        np.testing.assert_allclose(centres_KD, spots_KD, atol=1)


def test_fewer_patches_than_groups_leave_groups_empty() -> None:
    points_ND = np.array([[0, 0], [0, 0], [9, 9]], np.float32)
    centres_KD = find_groups(points_ND, 6, 0)
    assert centres_KD.shape == (6, 2)
    nearest_N = squared_distances(points_ND, centres_KD).argmin(axis=1)
    assert nearest_N[0] == nearest_N[1] != nearest_N[2]
    np.testing.assert_allclose(squared_distances(points_ND, centres_KD).min(axis=1), 0)
