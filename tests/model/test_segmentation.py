"""Labels and scores come from the nearest class, whatever the order, size and background."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from model import segmentation
from model.segmentation import (
    average_prompts,
    bilinear_matrix,
    cosine_map,
    l2_normalize,
    segment,
    upsample_bilinear,
)

FloatArray = NDArray[np.float32]
seeds = st.integers(0, 2**32 - 1)
small = st.integers(1, 6)


def noise(seed: int, *shape: int) -> FloatArray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


@given(seeds, small, st.tuples(small, small), st.tuples(st.integers(1, 40), st.integers(1, 40)))
@settings(deadline=None)
def test_labels_are_in_range_and_follow_the_classes(
    seed: int, num_classes: int, grid_hw: tuple[int, int], size_hw: tuple[int, int]
) -> None:
    features_ND = noise(seed, grid_hw[0] * grid_hw[1], 8)
    classes_KD = noise(seed + 1, num_classes, 8)
    result = segment(features_ND, classes_KD, grid_hw=grid_hw, size_hw=size_hw)
    assert result.labels_HW.shape == result.score_HW.shape == size_hw
    assert result.labels_HW.dtype == np.uint16
    assert result.score_HW.dtype == np.float32
    assert result.labels_HW.min() >= 1
    assert result.labels_HW.max() <= num_classes
    assert np.abs(result.score_HW).max() <= 1 + 1e-5

    order = np.random.default_rng(seed).permutation(num_classes)
    permuted = segment(features_ND, classes_KD[order], grid_hw=grid_hw, size_hw=size_hw)
    np.testing.assert_allclose(permuted.score_HW, result.score_HW, atol=1e-6)
    maps_KHW = upsample_bilinear(cosine_map(features_ND, classes_KD, grid_hw), size_hw)
    ranked = np.sort(maps_KHW, axis=0)
    is_clear = ranked[-1] - (ranked[-2] if num_classes > 1 else -2) > 1e-5
    np.testing.assert_array_equal(
        order[permuted.labels_HW - 1][is_clear], (result.labels_HW - 1)[is_clear]
    )


@given(seeds, st.floats(-1, 1, width=32))
@settings(deadline=None)
def test_a_threshold_makes_exactly_the_weak_pixels_background(seed: int, threshold: float) -> None:
    features_ND, classes_KD = noise(seed, 12, 8), noise(seed + 1, 3, 8)
    plain = segment(features_ND, classes_KD, grid_hw=(3, 4), size_hw=(20, 30))
    cut = segment(
        features_ND,
        classes_KD,
        grid_hw=(3, 4),
        size_hw=(20, 30),
        background_threshold=threshold,
    )
    np.testing.assert_array_equal(cut.score_HW, plain.score_HW)
    expected = np.where(plain.score_HW < threshold, 0, plain.labels_HW)
    np.testing.assert_array_equal(cut.labels_HW, expected)


def test_each_half_gets_its_own_class() -> None:
    features_ND = np.eye(2, dtype=np.float32)[[0, 1, 0, 1]] * 7
    result = segment(features_ND, np.eye(2, dtype=np.float32), grid_hw=(2, 2), size_hw=(28, 28))
    assert (result.labels_HW[:, :14] == 1).all()
    assert (result.labels_HW[:, 14:] == 2).all()
    assert result.score_HW[0, 0] == pytest.approx(1)


def test_bands_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    features_ND, classes_KD = noise(0, 20, 8), noise(1, 5, 8)
    whole = segment(features_ND, classes_KD, grid_hw=(4, 5), size_hw=(61, 47))
    monkeypatch.setattr(segmentation, "BAND_ELEMENTS", 5 * 47 * 7)
    banded = segment(features_ND, classes_KD, grid_hw=(4, 5), size_hw=(61, 47))
    np.testing.assert_array_equal(banded.labels_HW, whole.labels_HW)
    np.testing.assert_allclose(banded.score_HW, whole.score_HW, atol=1e-6)


def test_normalising_keeps_zero_and_direction() -> None:
    unit = l2_normalize(np.array([[3, 4], [0, 0]], dtype=np.float32))
    np.testing.assert_allclose(unit, [[0.6, 0.8], [0.0, 0.0]], rtol=1e-6)
    assert unit.dtype == np.float32


def test_prompts_count_by_direction_and_not_by_length() -> None:
    text_PD = np.array([[100, 0], [0, 0.01]], dtype=np.float32)
    expected_D = np.sqrt(np.array([0.5, 0.5], dtype=np.float32))
    np.testing.assert_allclose(average_prompts(text_PD), expected_D, rtol=1e-6)


def test_cosines_stand_where_their_patches_are() -> None:
    patches_ND = noise(0, 6, 4)
    classes_KD = noise(1, 2, 4)
    cosine_KHW = cosine_map(patches_ND, classes_KD, (2, 3))
    patch, text = patches_ND[1 * 3 + 2], classes_KD[1]
    expected = patch @ text / np.linalg.norm(patch) / np.linalg.norm(text)
    assert cosine_KHW[1, 1, 2] == pytest.approx(expected, abs=1e-6)


@given(st.integers(1, 50), st.integers(1, 200))
def test_interpolation_weights_are_shares(size_in: int, size_out: int) -> None:
    weights = bilinear_matrix(size_in, size_out)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)
    assert ((weights > 0).sum(axis=1) <= 2).all()


@pytest.mark.parametrize(
    ("features", "classes", "size_hw", "complaint"),
    [
        (noise(0, 5, 4), noise(1, 2, 4), (9, 9), "grid of 2 x 3"),
        (noise(0, 6, 4), noise(1, 2, 5), (9, 9), "do not fit patches"),
        (noise(0, 6, 4), noise(1, 0, 4), (9, 9), "do not fit patches"),
        (noise(0, 6, 4), noise(1, 2, 4), (0, 9), "at least one pixel"),
        (noise(0, 6, 1), noise(1, 65_536, 1), (9, 9), "at most 65535"),
    ],
)
def test_what_does_not_fit_is_refused(
    features: FloatArray, classes: FloatArray, size_hw: tuple[int, int], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        segment(features, classes, grid_hw=(2, 3), size_hw=size_hw)
