"""Tiles give the same best classes as comparing all classes at all pixels."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from model import winner_map
from model.segmentation import compare_everywhere, upsample_bilinear
from model.tiles import cut_axis
from model.winner_map import WinnerMap, count_labels, find_winners

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


def check(value_hwK: FloatArray, found: WinnerMap, size_hw: tuple[int, int]) -> None:
    expected = compare_everywhere(value_hwK, size_hw, with_scores=True)
    differ_HW = found.labels_HW != expected.labels_HW
    if differ_HW.any():
        value_KHW = upsample_bilinear(value_hwK.transpose(2, 0, 1), size_hw)
        chosen_HW = np.take_along_axis(value_KHW, found.labels_HW[None].astype(int) - 1, axis=0)[0]
        assert (score_of(expected) - chosen_HW).max() < CLEAR
    if found.score_HW is not None:
        np.testing.assert_allclose(found.score_HW, score_of(expected), atol=CLEAR)
    counts = np.bincount(found.labels_HW.ravel(), minlength=value_hwK.shape[2] + 1)
    np.testing.assert_array_equal(found.counts, counts)


@given(
    seed=seeds, grid_hw=grids, size_hw=sizes, num_classes=st.integers(1, 12), smooth=st.booleans()
)
@settings(deadline=None, max_examples=60)
@pytest.mark.parametrize("with_scores", [True, False])
def test_noise_and_smooth_maps_are_labelled_as_by_comparing_everywhere(
    seed: int,
    grid_hw: tuple[int, int],
    size_hw: tuple[int, int],
    num_classes: int,
    smooth: bool,
    with_scores: bool,
) -> None:
    value_hwK = (rolling if smooth else noise)(seed, *grid_hw, num_classes)
    check(value_hwK, find_winners(value_hwK, size_hw, with_scores=with_scores), size_hw)


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


@pytest.mark.parametrize("size_hw", [(1, 2000), (2000, 1), (3, 5), (700, 40), (1, 1)])
def test_thin_and_tiny_images(size_hw: tuple[int, int]) -> None:
    value_hwK = noise(1, 16, 23, 9)
    check(value_hwK, find_winners(value_hwK, size_hw, with_scores=True), size_hw)


@pytest.mark.parametrize("num_classes", [3, 300])
def test_bands_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch, num_classes: int) -> None:
    value_hwK = noise(2, 9, 8, num_classes)
    whole = find_winners(value_hwK, (301, 260), with_scores=True)
    monkeypatch.setattr(winner_map, "BAND_ELEMENTS", 1)
    banded = find_winners(value_hwK, (301, 260), with_scores=True)
    np.testing.assert_array_equal(banded.labels_HW, whole.labels_HW)
    np.testing.assert_array_equal(banded.counts, whole.counts)
    np.testing.assert_allclose(score_of(banded), score_of(whole), atol=1e-6)
    check(value_hwK, banded, (301, 260))


def test_few_cosines_are_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluated: list[int] = []
    compete = winner_map._Contest._compete

    def watch(
        contest: winner_map._Contest, label_C: winner_map.Labels, basis_4P: FloatArray
    ) -> tuple[winner_map.Labels, FloatArray]:
        evaluated.append(len(contest.class_C) * basis_4P.shape[1])
        return compete(contest, label_C, basis_4P)

    monkeypatch.setattr(winner_map._Contest, "_compete", watch)
    value_hwK = rolling(4, 8, 11, 80)
    check(value_hwK, find_winners(value_hwK, (384, 512)), (384, 512))
    assert sum(evaluated) < 384 * 512 * 80 / 50


@given(st.integers(1, 40), st.integers(1, 300), st.integers(8, 32))
def test_tiles_cover_an_axis_once(num_centres: int, num_pixels: int, side: int) -> None:
    axis = cut_axis(num_centres, num_pixels, side)
    assert axis.first_A[0] == 0
    assert axis.first_A[-1] == num_pixels
    assert (axis.sides >= 0).all()
    np.testing.assert_allclose(axis.weights_Ah.sum(axis=1), 1, rtol=1e-6)
    is_there = axis.sides > 0
    assert (axis.offsets[is_there] >= 0).all()
    last = axis.offsets + axis.step * (axis.sides - 1)
    assert (last[is_there] < 1 + 1e-4).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("num_labels", [1, 5, 256, 300])
def test_labels_are_counted(monkeypatch: pytest.MonkeyPatch, dtype: Any, num_labels: int) -> None:
    monkeypatch.setattr(winner_map, "COUNTED_AT_ONCE", 50)
    top = min(num_labels, np.iinfo(dtype).max + 1)
    labels_HW = np.random.default_rng(0).integers(0, top, (17, 31)).astype(dtype)
    counts = count_labels(labels_HW, num_labels)
    assert counts.dtype == np.int64
    assert counts.tolist() == [(labels_HW == label).sum() for label in range(num_labels)]
    assert count_labels(labels_HW[:, ::2], num_labels).sum() == 17 * 16
