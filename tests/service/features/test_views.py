"""Views of patch embeddings, step by step as the reference recipe has them."""

from typing import Any

import numpy as np
import pytest
from sklearn.decomposition import PCA

from model.segmentation import upsample_bilinear
from service.messages import VisualizeFeaturesRequest
from service.outputs.features import find_groups, fit_view, squared_distances

GRID, SIZE = (6, 5), (31, 40)
FEATURES = np.random.default_rng(0).standard_normal((30, 8)).astype(np.float32)


def request(**values: Any) -> VisualizeFeaturesRequest:
    return VisualizeFeaturesRequest(images=(b"",), **values)


def test_colours_are_a_sigmoid_of_whitened_components() -> None:
    projected_NC = PCA(3, whiten=True, svd_solver="full").fit_transform(FEATURES)
    expected_hw3 = (1 / (1 + np.exp(-2 * projected_NC))).reshape(*GRID, 3)
    view = fit_view(request(), [FEATURES])
    np.testing.assert_allclose(view(FEATURES, GRID, GRID), expected_hw3, atol=1e-4)
    scaled = upsample_bilinear(np.moveaxis(expected_hw3, -1, 0).astype(np.float32), SIZE)
    found_HW3 = view(FEATURES, GRID, SIZE)
    np.testing.assert_allclose(found_HW3, np.moveaxis(scaled, 0, -1), atol=1e-4)
    assert found_HW3.shape == (*SIZE, 3)
    assert found_HW3.flags.c_contiguous


def test_a_component_runs_from_zero_to_one() -> None:
    first_N = PCA(1, svd_solver="full").fit_transform(FEATURES)[:, 0]
    expected_N = (first_N - first_N.min()) / np.ptp(first_N)
    found_hw = fit_view(request(kind="component"), [FEATURES])(FEATURES, GRID, GRID)
    np.testing.assert_allclose(found_hw, expected_N.reshape(GRID), atol=1e-4)
    assert (found_hw.min(), found_hw.max()) == (0, 1)
    flat = np.ones((30, 8), np.float32)
    assert not fit_view(request(kind="component"), [flat])(flat, GRID, GRID).any()


def test_groups_are_compared_after_their_distances_are_scaled() -> None:
    asked = request(kind="groups", group_count=4, seed=2)
    centres_KD = find_groups(FEATURES, 4, 2)
    distance_KN = np.sqrt(squared_distances(FEATURES, centres_KD)).T
    large_KHW = upsample_bilinear(distance_KN.reshape(4, *GRID), SIZE)
    view = fit_view(asked, [FEATURES])
    found_HW = view(FEATURES, GRID, SIZE)
    assert found_HW.dtype == np.uint16
    assert (found_HW == large_KHW.argmin(axis=0) + 1).mean() > 0.999  # but for equal ones
    np.testing.assert_array_equal(
        view(FEATURES, GRID, GRID), (distance_KN.argmin(axis=0) + 1).reshape(GRID)
    )


@pytest.mark.parametrize("kind", ["colors", "component", "groups"])
def test_together_the_same_patch_looks_the_same_in_every_image(kind: Any) -> None:
    other = 3 * np.random.default_rng(1).standard_normal((30, 8)).astype(np.float32)
    other[7] = FEATURES[4]
    view = fit_view(request(kind=kind, scope="request"), [FEATURES, other])
    one, two = (view(f, GRID, GRID).reshape(30, -1) for f in (FEATURES, other))
    np.testing.assert_allclose(one[4], two[7])
