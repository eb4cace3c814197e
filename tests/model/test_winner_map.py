"""Tiles give the same best classes as comparing all classes at all pixels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from model.segmentation import compare_everywhere, upsample_bilinear
from model.winner_map import WinnerMap, find_winners

FloatArray = NDArray[np.float32]
seeds = st.integers(0, 2**32 - 1)
grids = st.tuples(st.integers(1, 7), st.integers(1, 7))
sizes = st.tuples(st.integers(1, 90), st.integers(1, 90))
# Two classes as near as float32's rounding may come out either way.
CLEAR = 1e-6


def noise(seed: int, *shape: int) -> FloatArray:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def score_of(found: WinnerMap) -> FloatArray:
    assert found.score_HW is not None
    return found.score_HW


def rolling(seed: int, *shape: int) -> FloatArray:
    """Hills of several patches' width, between -1 and 1."""
    heights = noise(seed, *shape).cumsum(axis=0).cumsum(axis=1)
    scaled: FloatArray = (heights / np.abs(heights).max()).astype(np.float32)
    return scaled


def check(
    value_hwK: FloatArray,
    found: WinnerMap,
    size_hw: tuple[int, int],
    floor_K: FloatArray | None = None,
) -> None:
    expected = compare_everywhere(value_hwK, size_hw, with_scores=True)
    differ_HW = found.labels_HW != expected.labels_HW
    if floor_K is not None:
        above_HW = score_of(expected) - floor_K[expected.labels_HW - 1]
        is_low_HW = found.labels_HW == 0
        assert above_HW[is_low_HW].max(initial=-1) < CLEAR
        assert above_HW[~(is_low_HW | differ_HW)].min(initial=1) > -CLEAR
        differ_HW &= ~is_low_HW
    if differ_HW.any():
        value_KHW = upsample_bilinear(value_hwK.transpose(2, 0, 1), size_hw)
        chosen_HW = np.take_along_axis(value_KHW, found.labels_HW[None].astype(int) - 1, axis=0)[0]
        assert (score_of(expected) - chosen_HW)[differ_HW].max() < CLEAR
    if found.score_HW is not None:
        np.testing.assert_allclose(found.score_HW, score_of(expected), atol=CLEAR)
    counts = np.bincount(found.labels_HW.ravel(), minlength=value_hwK.shape[2] + 1)
    np.testing.assert_array_equal(found.counts, counts)


@given(
    seed=seeds, grid_hw=grids, size_hw=sizes, num_classes=st.integers(1, 12), smooth=st.booleans()
)
@settings(deadline=None, max_examples=60)
@pytest.mark.parametrize("with_scores", [True, False])
@pytest.mark.parametrize("with_floors", [True, False])
def test_noise_and_smooth_maps_are_labelled_as_by_comparing_everywhere(
    seed: int,
    grid_hw: tuple[int, int],
    size_hw: tuple[int, int],
    num_classes: int,
    smooth: bool,
    with_scores: bool,
    with_floors: bool,
) -> None:
    value_hwK = (rolling if smooth else noise)(seed, *grid_hw, num_classes)
    floor_K = noise(seed + 1, num_classes) if with_floors else None
    found = find_winners(value_hwK, size_hw, with_scores=with_scores, floor_K=floor_K)
    check(value_hwK, found, size_hw, floor_K)
    everywhere = compare_everywhere(value_hwK, size_hw, with_scores=False, floor_K=floor_K)
    check(value_hwK, everywhere, size_hw, floor_K)


@given(
    seed=seeds,
    grid_hw=grids,
    exponent=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    num_classes=st.integers(1, 6),
)
@settings(deadline=None, max_examples=60)
def test_the_first_of_equal_classes_wins(
    seed: int, grid_hw: tuple[int, int], exponent: tuple[int, int], num_classes: int
) -> None:
    # Few whole values and sizes in powers of two: nothing is rounded, and ties are everywhere.
    whole = np.random.default_rng(seed).integers(0, 3, (*grid_hw, num_classes))
    value_hwK: FloatArray = whole.astype(np.float32)
    size_hw = grid_hw[0] << exponent[0], grid_hw[1] << exponent[1]
    found = find_winners(value_hwK, size_hw, with_scores=True)
    expected = compare_everywhere(value_hwK, size_hw, with_scores=True)
    np.testing.assert_array_equal(found.labels_HW, expected.labels_HW)
    np.testing.assert_array_equal(score_of(found), score_of(expected))
