"""Components and groups equal scikit-learn's, and views equal the reference recipe."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA

from model.segmentation import upsample_bilinear
from service.messages import VisualizeFeaturesRequest
from service.outputs.colours import COLOUR_SCALE, PALETTE
from service.outputs.features import (
    MAX_ITERATIONS,
    encode_view_png,
    find_groups,
    first_centres,
    fit_components,
    fit_view,
    move_centres,
    squared_distances,
)


@pytest.mark.parametrize("shape", [(40, 12), (12, 40), (4, 3)], ids=["tall", "wide", "small"])
def test_components_are_those_of_scikit_learn(shape: tuple[int, int]) -> None:
    # Far from the origin, with a different deviation along every axis.
    scales = np.linspace(1, 5, shape[1])
    noise_ND = np.random.default_rng(0).standard_normal(shape)
    features_ND = (noise_ND * scales + 7).astype(np.float32)
    expected_NC = PCA(3, whiten=True, svd_solver="full").fit_transform(features_ND)
    found_NC = fit_components(features_ND, 3)(features_ND)
    assert found_NC.dtype == np.float32
    np.testing.assert_allclose(found_NC, expected_NC, atol=2e-4)


def test_constant_features_give_zero_components() -> None:
    line_ND = np.outer(np.arange(9, dtype=np.float32), np.ones(5, np.float32))
    found_NC = fit_components(line_ND, 3)(line_ND)
    assert np.ptp(found_NC[:, 0]) > 2
    assert not found_NC[:, 1:].any()
    same_ND = np.full((6, 5), 0.3, np.float32)
    assert not fit_components(same_ND, 3)(same_ND).any()
    assert not fit_components(same_ND[:1], 3)(same_ND).any()


FEATURES = np.random.default_rng(0).standard_normal((200, 16)).astype(np.float32) + 5


@pytest.mark.parametrize("num_groups", [2, 6, 20])
def test_from_the_same_centres_groups_are_those_of_scikit_learn(num_groups: int) -> None:
    first_KD = first_centres(FEATURES, num_groups, np.random.default_rng(1))
    judge = KMeans(num_groups, init=first_KD, n_init=1, max_iter=MAX_ITERATIONS, tol=0)
    labels_N = judge.fit(FEATURES).labels_
    centres_KD, nearest_N = move_centres(FEATURES, first_KD)
    np.testing.assert_array_equal(nearest_N, labels_N)
    np.testing.assert_allclose(centres_KD, judge.cluster_centers_, atol=1e-4)


def test_clear_groups_are_found_with_any_seed_and_the_largest_comes_first() -> None:
    spots_KD = 100 * np.eye(4, dtype=np.float32)
    noise_ND = np.random.default_rng(0).random((24, 4), np.float32)
    points_ND = np.repeat(spots_KD, [9, 7, 5, 3], axis=0) + noise_ND
    for seed in range(5):
        np.testing.assert_allclose(find_groups(points_ND, 4, seed), spots_KD, atol=1)
    once, again, other = (find_groups(FEATURES, 5, seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(once, again)
    assert not np.array_equal(once, other)


GRID, SIZE = (6, 5), (31, 40)
VIEW_FEATURES = np.random.default_rng(0).standard_normal((30, 8)).astype(np.float32)


def request(**values: Any) -> VisualizeFeaturesRequest:
    return VisualizeFeaturesRequest(images=(b"",), **values)


def test_colours_are_a_sigmoid_of_whitened_components_and_one_component_fills_its_range() -> None:
    projected_NC = PCA(3, whiten=True, svd_solver="full").fit_transform(VIEW_FEATURES)
    expected_hw3 = (1 / (1 + np.exp(-2 * projected_NC))).reshape(*GRID, 3)
    view = fit_view(request(), [VIEW_FEATURES])
    np.testing.assert_allclose(view(VIEW_FEATURES, GRID, GRID, None), expected_hw3, atol=1e-4)
    scaled = upsample_bilinear(np.moveaxis(expected_hw3, -1, 0).astype(np.float32), SIZE)
    found_HW3 = view(VIEW_FEATURES, GRID, SIZE, None)
    np.testing.assert_allclose(found_HW3, np.moveaxis(scaled, 0, -1), atol=1e-4)
    assert found_HW3.flags.c_contiguous
    one = request(kind="component")
    expected_N = (projected_NC[:, 0] - projected_NC[:, 0].min()) / np.ptp(projected_NC[:, 0])
    found_hw = fit_view(one, [VIEW_FEATURES])(VIEW_FEATURES, GRID, GRID, None)
    np.testing.assert_allclose(found_hw, expected_N.reshape(GRID), atol=1e-4)
    assert (found_hw.min(), found_hw.max()) == (0, 1)
    flat = np.ones((30, 8), np.float32)
    assert not fit_view(one, [flat])(flat, GRID, GRID, None).any()


def test_groups_are_compared_after_their_distances_are_scaled() -> None:
    asked = request(kind="groups", group_count=4, seed=2)
    centres_KD = find_groups(VIEW_FEATURES, 4, 2)
    distance_KN = np.sqrt(squared_distances(VIEW_FEATURES, centres_KD)).T
    large_KHW = upsample_bilinear(distance_KN.reshape(4, *GRID), SIZE)
    view = fit_view(asked, [VIEW_FEATURES])
    found_HW = view(VIEW_FEATURES, GRID, SIZE, None)
    assert found_HW.dtype == np.uint16
    assert (found_HW == large_KHW.argmin(axis=0) + 1).mean() > 0.999  # but for equal ones
    np.testing.assert_array_equal(
        view(VIEW_FEATURES, GRID, GRID, None), (distance_KN.argmin(axis=0) + 1).reshape(GRID)
    )


@pytest.mark.parametrize("kind", ["colors", "component", "groups"])
def test_with_request_scope_equal_patches_look_equal_in_every_image(kind: Any) -> None:
    other = 3 * np.random.default_rng(1).standard_normal((30, 8)).astype(np.float32)
    other[7] = VIEW_FEATURES[4]
    view = fit_view(request(kind=kind, scope="request"), [VIEW_FEATURES, other])
    one, two = (view(f, GRID, GRID, None).reshape(30, -1) for f in (VIEW_FEATURES, other))
    np.testing.assert_allclose(one[4], two[7])


def test_pngs_show_colours_components_and_numbered_groups() -> None:
    def opened(values: Any, kind: Any) -> Image.Image:
        return Image.open(io.BytesIO(encode_view_png(values, kind)))

    colours_HW3 = np.random.default_rng(0).random((5, 7, 3), np.float32)
    drawn = opened(colours_HW3, "colors")
    np.testing.assert_array_equal(np.asarray(drawn), np.rint(colours_HW3 * 255))
    line = opened(np.array([[0, 0.5, 1]], "f4"), "component").convert("RGB")
    np.testing.assert_array_equal(np.asarray(line)[0][[0, 2]], COLOUR_SCALE[[255, 0]])
    labels_HW = np.array([[1, 2], [20, 1]], np.uint16)
    groups = opened(labels_HW, "groups")
    np.testing.assert_array_equal(np.asarray(groups), labels_HW)
    np.testing.assert_array_equal(np.asarray(groups.convert("RGB")), PALETTE[labels_HW])
