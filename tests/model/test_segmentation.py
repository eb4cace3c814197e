"""Labels and scores come from the nearest class, whatever the order, size and background."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from model import segmentation
from model.segmentation import (
    Background,
    PooledClasses,
    SegmentationMap,
    average_groups,
    average_prompts,
    compare_everywhere,
    cosine_map,
    l2_normalize,
    patch_shares,
    segment,
    upsample_bilinear,
)
from model.winner_map import WinnerMap

FloatArray = NDArray[np.float32]
seeds = st.integers(0, 2**32 - 1)
small = st.integers(1, 6)


def score_of(found: SegmentationMap | WinnerMap) -> FloatArray:
    assert found.score_HW is not None
    return found.score_HW


def noise(seed: int, *shape: int) -> FloatArray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


@given(seeds, small, st.tuples(small, small), st.tuples(st.integers(1, 40), st.integers(1, 40)))
@settings(deadline=None)
def test_labels_are_in_range_and_follow_the_classes(
    seed: int, num_classes: int, grid_hw: tuple[int, int], size_hw: tuple[int, int]
) -> None:
    features_ND = noise(seed, grid_hw[0] * grid_hw[1], 8)
    classes_KD = noise(seed + 1, num_classes, 8)
    result = segment(features_ND, classes_KD, grid_hw=grid_hw, size_hw=size_hw, with_scores=True)
    assert result.score_HW is not None
    assert result.labels_HW.shape == result.score_HW.shape == size_hw
    assert result.labels_HW.dtype == np.uint8
    assert result.score_HW.dtype == np.float32
    assert result.labels_HW.min() >= 1
    assert result.labels_HW.max() <= num_classes
    assert np.abs(result.score_HW).max() <= 1 + 1e-5

    order = np.random.default_rng(seed).permutation(num_classes)
    permuted = segment(
        features_ND, classes_KD[order], grid_hw=grid_hw, size_hw=size_hw, with_scores=True
    )
    np.testing.assert_allclose(score_of(permuted), result.score_HW, atol=1e-6)
    maps_KHW = upsample_bilinear(cosine_map(features_ND, classes_KD, grid_hw), size_hw)
    ranked = np.sort(maps_KHW, axis=0)
    is_clear = ranked[-1] - (ranked[-2] if num_classes > 1 else -2) > 1e-5
    np.testing.assert_array_equal(
        order[permuted.labels_HW - 1][is_clear], (result.labels_HW - 1)[is_clear]
    )


@pytest.mark.parametrize("size_hw", [(20, 30), (120, 160)])
@pytest.mark.parametrize("with_scores", [True, False])
@given(seed=seeds, threshold=st.floats(-1, 1, width=32))
@settings(deadline=None, max_examples=20)
def test_a_threshold_makes_exactly_the_weak_pixels_background(
    seed: int, threshold: float, with_scores: bool, size_hw: tuple[int, int]
) -> None:
    features_ND, classes_KD = noise(seed, 12, 8), noise(seed + 1, 60, 8)
    plain = segment(features_ND, classes_KD, grid_hw=(3, 4), size_hw=size_hw, with_scores=True)
    cut = segment(
        features_ND,
        classes_KD,
        grid_hw=(3, 4),
        size_hw=size_hw,
        background=Background(threshold=threshold),
        with_scores=with_scores,
    )
    assert plain.score_HW is not None
    assert (cut.score_HW is not None) == with_scores
    is_clear = np.abs(plain.score_HW - threshold) > 1e-6
    expected = np.where(plain.score_HW < threshold, 0, plain.labels_HW)
    np.testing.assert_array_equal(cut.labels_HW[is_clear], expected[is_clear])
    np.testing.assert_array_equal(cut.counts, np.bincount(cut.labels_HW.ravel(), minlength=61))


@pytest.mark.parametrize("threshold", [None, 0.3])
@pytest.mark.parametrize("with_scores", [True, False])
@pytest.mark.parametrize("size_hw", [(9, 7), (128, 160)])
def test_background_classes_are_zero_and_counted_so(
    size_hw: tuple[int, int], with_scores: bool, threshold: float | None
) -> None:
    features_ND, classes_KD = noise(0, 12, 8), noise(1, 60, 8)
    plain, found = (
        segment(
            features_ND,
            classes_KD,
            grid_hw=(3, 4),
            size_hw=size_hw,
            background=Background(threshold=threshold, num_classes=num_classes),
            with_scores=with_scores,
        )
        for num_classes in (0, 20)
    )
    expected = np.where(plain.labels_HW > 40, 0, plain.labels_HW)
    np.testing.assert_array_equal(found.labels_HW, expected)
    np.testing.assert_array_equal(found.counts, np.bincount(expected.ravel(), minlength=41))
    assert found.counts[0] > 0


def test_a_level_is_lower_for_a_class_that_is_likely_at_many_places() -> None:
    """Half the range is 0.5; a hundred places, of which so many reach 0.6 or more."""
    value_K1N = np.zeros((4, 1, 100), np.float32)
    for k, num_likely in enumerate((10, 40, 90)):
        value_K1N[k, 0, :num_likely] = 0.6
        value_K1N[k, 0, 0] = 1
    value_K1N[3, 0, :90] = 0.4  # absent
    for level, expected in ((0.65, (0.65, 0.45, 0.3)), (0.4, (0.4, 0.3, 0.3)), (0.1, (0.1,) * 3)):
        floor_K = Background(level=level, least_cosine=0.5).floors(value_K1N)
        assert floor_K is not None
        np.testing.assert_allclose(floor_K, [*expected, np.inf], rtol=1e-6)
    apart = Background(level=0.65, num_classes=1).floors(value_K1N[:2])
    assert apart is not None
    np.testing.assert_allclose(apart, [0.65, -np.inf])


def test_labels_beyond_255_are_kept() -> None:
    classes_KD = np.eye(300, dtype=np.float32)
    for background in (Background(), Background(threshold=-1)):
        found = segment(
            classes_KD[[298, 7]],
            classes_KD,
            grid_hw=(1, 2),
            size_hw=(80, 80),
            background=background,
        )
        assert found.labels_HW.dtype == np.uint16
        assert found.labels_HW[0, [0, -1]].tolist() == [299, 8]


@pytest.mark.parametrize("band", [1, 7, 10_000])
def test_a_class_with_several_vectors_takes_the_best_at_each_patch(
    band: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segmentation, "BAND_ELEMENTS", 6 * band)
    features_ND, vectors_VD = noise(0, 20, 8), l2_normalize(noise(1, 6, 8))
    single_Vhw = cosine_map(features_ND, vectors_VD, (4, 5))
    classes = PooledClasses(vectors_VD, [1, 3, 2])
    expected_Khw = [single_Vhw[0], single_Vhw[1:4].max(axis=0), single_Vhw[4:].max(axis=0)]
    np.testing.assert_allclose(cosine_map(features_ND, classes, (4, 5)), expected_Khw, atol=1e-6)
    found = segment(features_ND, classes, grid_hw=(4, 5), size_hw=(4, 5))
    assert (found.labels_HW == np.argmax(expected_Khw, axis=0) + 1).all()
    assert len(found.counts) == 1 + 3


def test_bands_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    value_hwK = noise(0, 4, 5, 5)
    whole = compare_everywhere(value_hwK, (61, 47), with_scores=True)
    monkeypatch.setattr(segmentation, "BAND_ELEMENTS", 5 * 47 * 7)
    banded = compare_everywhere(value_hwK, (61, 47), with_scores=True)
    np.testing.assert_array_equal(banded.labels_HW, whole.labels_HW)
    np.testing.assert_array_equal(banded.counts, whole.counts)
    np.testing.assert_allclose(score_of(banded), score_of(whole), atol=1e-6)


def test_normalising_keeps_zero_and_prompts_count_by_direction() -> None:
    unit = l2_normalize(np.array([[3, 4], [0, 0]], dtype=np.float32))
    np.testing.assert_allclose(unit, [[0.6, 0.8], [0.0, 0.0]], rtol=1e-6)
    assert unit.dtype == np.float32
    text_PD = np.array([[100, 0], [0, 0.01]], dtype=np.float32)
    np.testing.assert_allclose(average_prompts(text_PD), [0.5**0.5] * 2, rtol=1e-6)


@pytest.mark.parametrize("width", [1, 3, 192, 1024])
def test_one_vector_has_the_unit_vector_that_it_has_as_a_row(width: int) -> None:
    rng = np.random.default_rng(width)
    for scale in (1e-18, 1e-3, 1.0, 1e15, 0.0, np.nan):
        vector_D = (scale * rng.standard_normal(width)).astype(np.float32)
        unit_D = l2_normalize(vector_D)
        assert unit_D.dtype == np.float32
        np.testing.assert_array_equal(unit_D, l2_normalize(vector_D[None])[0])


@given(seeds, st.lists(st.integers(1, 4), min_size=1, max_size=6))
def test_several_classes_are_averaged_like_one(seed: int, sizes: list[int]) -> None:
    text_PD = noise(seed, sum(sizes), 8)
    parts = np.split(text_PD, np.cumsum(sizes)[:-1])
    one_by_one = [l2_normalize(l2_normalize(part).mean(axis=0)) for part in parts]
    averaged_KD = average_groups(text_PD, sizes)
    assert averaged_KD.dtype == np.float32
    np.testing.assert_allclose(averaged_KD, one_by_one, atol=1e-6)


@pytest.mark.parametrize(
    ("features", "classes", "size_hw", "complaint"),
    [
        (noise(0, 5, 4), noise(1, 2, 4), (9, 9), "grid of 2 x 3"),
        (noise(0, 6, 4), noise(1, 2, 5), (9, 9), "do not fit patches"),
        (noise(0, 6, 4), noise(1, 0, 4), (9, 9), "do not fit patches"),
        (noise(0, 6, 4), noise(1, 2, 4), (0, 9), "at least one pixel"),
        (noise(0, 6, 1), noise(1, 65_535, 1), (9, 9), "at most 65534"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(
    features: FloatArray, classes: FloatArray, size_hw: tuple[int, int], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        segment(features, classes, grid_hw=(2, 3), size_hw=size_hw)


@given(
    labels=st.lists(st.integers(-1, 2), min_size=24, max_size=24),
    grid=st.sampled_from([(1, 1), (2, 3), (4, 6), (2, 2), (4, 4)]),
)
def test_the_shares_of_patches_are_those_of_their_pixels(
    labels: list[int], grid: tuple[int, int]
) -> None:
    labels_HW: NDArray[np.int64] = np.array(labels).reshape(4, 6)
    shares_NK = patch_shares(labels_HW, grid, 3)
    assert shares_NK.shape == (grid[0] * grid[1], 3)
    assert (shares_NK.sum(1) <= 1 + 1e-6).all()
    if 4 % grid[0] == 0 and 6 % grid[1] == 0:
        size = 24 // (grid[0] * grid[1])
        counts = [(labels_HW == k).sum() for k in range(3)]
        assert shares_NK.sum(0) * size == pytest.approx(counts)
        first = labels_HW[: 4 // grid[0], : 6 // grid[1]]
        assert shares_NK[0] * size == pytest.approx([(first == k).sum() for k in range(3)])
