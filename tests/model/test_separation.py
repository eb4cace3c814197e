"""Classes are separated from the rest of their image."""

import numpy as np

from model.separation import separate_patches, separate_places

LEAST = 0.1


def test_all_patches_of_an_object_are_above_the_others_where_its_name_knows_a_part() -> None:
    # The first two patches show an object; the name knows the first one, and what it is not like.
    object_3D = np.array([[3, 1, 0], [0, 1, 0], [0, 0, 1]], np.float32)
    features_ND = object_3D[[0, 0, 1, 1, 2, 2, 2, 2]]
    cosine_Khw = np.array([[[0.4, 0.4, 0.12, 0.12], [0.11, 0, 0.15, 0.1]]], np.float32)
    found_N = separate_patches(cosine_Khw, features_ND, LEAST).ravel()
    np.testing.assert_allclose(found_N[:2], 0.4, rtol=1e-6)
    assert found_N[2:4].min() > found_N[4:].max() + 0.01
    np.testing.assert_allclose(np.ptp(found_N[4:]), 0, atol=1e-6)


def test_lengths_of_features_and_a_class_that_is_absent_change_nothing() -> None:
    random = np.random.default_rng(0)
    features_ND = random.standard_normal((12, 5)).astype(np.float32)
    cosine_Khw = random.uniform(0, 0.5, (3, 3, 4)).astype(np.float32)
    cosine_Khw[1] *= 0.1
    found_Khw = separate_patches(cosine_Khw, features_ND, LEAST)
    longer_ND = features_ND * random.uniform(1, 9, (12, 1)).astype(np.float32)
    np.testing.assert_allclose(
        separate_patches(cosine_Khw, longer_ND, LEAST), found_Khw, rtol=1e-3, atol=1e-5
    )
    np.testing.assert_array_equal(found_Khw[1], cosine_Khw[1])
    np.testing.assert_allclose(found_Khw.max(axis=(1, 2)), cosine_Khw.max(axis=(1, 2)), rtol=1e-6)
    guide_3YX = random.integers(0, 256, (3, 6, 8), dtype=np.uint8)
    np.testing.assert_array_equal(separate_places(cosine_Khw, guide_3YX, LEAST)[1], cosine_Khw[1])


def test_colours_of_an_object_raise_its_map_and_even_colours_change_nothing() -> None:
    map_X = np.array([0.5, 0.5, 0.5, 0.3, 0.3, 0.1, 0.1, 0.1], np.float32)
    maps_KYX = np.broadcast_to(map_X, (1, 4, 8)).copy()
    guide_3YX = np.zeros((3, 8, 16), np.uint8)
    guide_3YX[0, :, :8] = 200  # the first four places of a row
    found_X = separate_places(maps_KYX, guide_3YX, LEAST)[0, 0]
    assert (found_X[:4] > map_X[:4] + 0.02).all()
    assert (found_X[4:] < map_X[4:] - 0.02).all()
    assert np.abs(found_X - map_X).max() <= 0.2 * 0.4 + 1e-6
    even_3YX = np.full((3, 8, 16), 90, np.uint8)
    np.testing.assert_allclose(separate_places(maps_KYX, even_3YX, LEAST), maps_KYX, atol=1e-6)


def test_maps_and_patches_without_differences_are_finite() -> None:
    even_Khw = np.full((1, 2, 2), 0.3, np.float32)
    for features_ND in (np.ones((4, 3), np.float32), np.zeros((4, 3), np.float32)):
        found_Khw = separate_patches(even_Khw, features_ND, LEAST)
        np.testing.assert_allclose(found_Khw, even_Khw, atol=1e-6)
        guide_3YX = np.zeros((3, 4, 4), np.uint8)
        np.testing.assert_allclose(separate_places(found_Khw, guide_3YX, LEAST), 0.3, atol=1e-6)
