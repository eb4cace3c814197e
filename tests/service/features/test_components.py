"""Principal components against scikit-learn's."""

import numpy as np
import pytest
from sklearn.decomposition import PCA

from service.outputs.features import fit_components


@pytest.mark.parametrize("shape", [(40, 12), (12, 40), (4, 3)], ids=["tall", "wide", "small"])
def test_components_are_those_of_scikit_learn(shape: tuple[int, int]) -> None:
    # Far from the origin, and of different deviations along every axis.
    scales = np.linspace(1, 5, shape[1])
    noise_ND = np.random.default_rng(0).standard_normal(shape)
    features_ND = (noise_ND * scales + 7).astype(np.float32)
    expected_NC = PCA(3, whiten=True, svd_solver="full").fit_transform(features_ND)
    found_NC = fit_components(features_ND, 3).project(features_ND)
    assert found_NC.dtype == np.float32
    np.testing.assert_allclose(found_NC, expected_NC, atol=2e-4)


def test_what_does_not_differ_is_zero_and_finite() -> None:
    line_ND = np.outer(np.arange(9, dtype=np.float32), np.ones(5, np.float32))
    found_NC = fit_components(line_ND, 3).project(line_ND)
    assert np.ptp(found_NC[:, 0]) > 2
    assert not found_NC[:, 1:].any()
    same_ND = np.full((6, 5), 0.3, np.float32)
    assert not fit_components(same_ND, 3).project(same_ND).any()
    assert not fit_components(same_ND[:1], 3).project(same_ND).any()
