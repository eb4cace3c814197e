"""Scores of classes and instances, against SciPy's labelling and whole arrays."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools import mask as coco
from scipy import ndimage  # type: ignore[import-untyped]

from model.segmentation import segment, upsample_bilinear
from service.messages import Holes
from service.outputs import regions, run_lengths
from service.outputs.regions import (
    Calibration,
    class_probabilities,
    class_scores,
    find_instances,
    score_pixels,
)
from service.outputs.run_lengths import Runs, compress_counts
from tests.regions import regions_without_holes

NUM_CLASSES = 4
# pycocotools' own code is older than NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ impl:DeprecationWarning")


@pytest.mark.parametrize(("grid_hw", "size_hw"), [((5, 7), (90, 61)), ((1, 1), (1, 1))])
@pytest.mark.parametrize("threshold", [None, 0.2])
def test_scores_and_instances_equal_whole_arrays(
    grid_hw: tuple[int, int],
    size_hw: tuple[int, int],
    threshold: float | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run_lengths, "BAND_PIXELS", 600)
    monkeypatch.setattr(regions, "BAND_VALUES", 100)
    random = np.random.default_rng(3)
    features_ND = random.standard_normal((grid_hw[0] * grid_hw[1], 6)).astype(np.float32)
    classes_KD = random.standard_normal((NUM_CLASSES, 6)).astype(np.float32)
    found = segment(features_ND, classes_KD, grid_hw=grid_hw, size_hw=size_hw)
    labels_HW = np.where(found.labels_HW == NUM_CLASSES, 0, found.labels_HW).astype(np.uint8)
    assert found.cosine_Khw is not None
    floor_K = None if threshold is None else np.full(NUM_CLASSES, threshold, np.float32)
    probability_Khw = class_probabilities(found.cosine_Khw, 0.1, floor_K)
    logit_Khw = found.cosine_Khw.astype(float) / 0.1
    total_hw = np.exp(logit_Khw).sum(axis=0)
    total_hw += 0 if threshold is None else np.exp(threshold / 0.1)
    np.testing.assert_allclose(probability_Khw, np.exp(logit_Khw) / total_hw, rtol=1e-4)
    wide_KHW = upsample_bilinear(probability_Khw, size_hw)
    runs = Runs.of(labels_HW)
    sum_R = score_pixels(runs, probability_Khw, size_hw)
    expected = []
    means = []
    for label in range(1, NUM_CLASSES):
        is_class_HW = labels_HW == label
        means.append(wide_KHW[label - 1][is_class_HW].mean() if is_class_HW.any() else 0)
        numbers_HW, count = ndimage.label(is_class_HW)
        own = [numbers_HW == number for number in range(1, count + 1)]
        large = [one for one in own if one.mean() >= 0.01]
        expected += [(label, one, wide_KHW[label - 1][one].mean()) for one in large]
    scores = class_scores(runs, sum_R, NUM_CLASSES - 1)
    np.testing.assert_allclose(scores, means, rtol=1e-5)
    instances = find_instances(runs, sum_R, size_hw, 0.01)
    assert len(instances) == len(expected)
    keys = [(one.label, -one.area) for one in instances]
    assert keys == sorted(keys)
    decoded = [
        coco.decode({"size": list(size_hw), "counts": text}).astype(bool)
        for text in compress_counts([one.counts for one in instances])
    ]
    for label, mask_HW, score in expected:
        (index,) = [i for i, one in enumerate(decoded) if (one == mask_HW).all()]
        instance = instances[index]
        rows, columns = mask_HW.any(axis=1).nonzero()[0], mask_HW.any(axis=0).nonzero()[0]
        box = (columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1)
        assert (instance.label, instance.area) == (label, mask_HW.sum())
        assert instance.box == box
        assert instance.score == pytest.approx(score, rel=1e-5)


def test_regions_that_touch_at_a_corner_are_two_and_long_ones_are_one() -> None:
    touching_HW = np.array([[1, 0], [0, 1]], np.uint8)
    # A spiral: its ends meet after many turns only.
    turns_HW = np.zeros((41, 41), np.uint8)
    for ring in range(0, 20, 2):
        turns_HW[ring : 41 - ring, [ring, 40 - ring]] = 1
        turns_HW[[ring, 40 - ring], ring : 41 - ring] = 1
        turns_HW[ring + 1, ring] = 0
        turns_HW[ring + 2 : ring + 3, ring : ring + 3] = 1
    for labels_HW in (touching_HW, touching_HW[::-1], turns_HW):
        runs = Runs.of(labels_HW)
        found = find_instances(runs, np.zeros(len(runs.label_R)), labels_HW.shape, 1e-4)
        assert len(found) == ndimage.label(labels_HW)[1]
        assert sum(one.area for one in found) == labels_HW.sum()


@pytest.mark.parametrize("min_area", [1, 3, 8])
@pytest.mark.parametrize("holes", ["fill", "keep"])
@pytest.mark.parametrize("seed", range(8))
def test_instances_are_the_regions_without_their_small_holes(
    seed: int, holes: Holes, min_area: int
) -> None:
    drawn_HW = np.random.default_rng(seed).choice(3, (14, 17), p=(0.15, 0.75, 0.1))
    labels_HW = drawn_HW.astype(np.uint8)
    runs = Runs.of(labels_HW)
    sum_R = runs.num_pixels.astype(np.float64) / 4
    share = min_area / labels_HW.size
    found = find_instances(runs, sum_R, labels_HW.shape, share, holes=holes)
    is_filled = holes == "fill"
    expected = [
        (label, one.astype(np.uint8).tobytes())
        for label in (1, 2)
        for one in regions_without_holes(labels_HW == label, min_area, is_filled=is_filled)
    ]
    texts = compress_counts([one.counts for one in found])
    masks = [coco.decode({"size": list(labels_HW.shape), "counts": text}) for text in texts]
    drawn = [(one.label, mask.tobytes()) for one, mask in zip(found, masks, strict=True)]
    assert sorted(drawn) == sorted(expected)
    assert [one.area for one in found] == [mask.sum() for mask in masks]
    assert {one.score for one in found} == {0.25}, "a mean over the pixels of the class"


def test_a_confidence_is_the_logistic_of_the_contrast_between_a_mask_and_the_rest() -> None:
    calibration = Calibration(offset=-1, slope=5)
    cosine_Khw = np.array([[[0.8, 0.2]], [[0.3, 0.3]], [[0.1, 0.5]], [[0, 0]]], np.float32)

    def find(labels_HW: NDArray[Any]) -> tuple[float, ...]:
        counts = np.bincount(labels_HW.ravel(), minlength=4)
        return calibration.confidences(labels_HW, cosine_Khw, counts)

    labels_HW = np.array([[1, 1, 2, 2]] * 3, np.uint8)
    found = find(labels_HW)
    assert found == pytest.approx([1 / (1 + np.exp(1 - 5 * 0.6)), 1 / (1 + np.exp(1)), 0])
    # A mask that covers no place of the map, and one that covers all.
    speck_HW = np.array([[0, 0, 3, 0]], np.uint8)
    assert find(speck_HW)[2] == pytest.approx(1 / (1 + np.exp(1 - 5 * (0.5 - 0.3))))
    all_HW = np.full((2, 2), 3, np.uint16)
    assert find(all_HW)[2] == pytest.approx(1 / (1 + np.exp(1 - 5 * (0.3 - 0.1))))


def test_a_map_of_background_has_neither_scores_nor_instances() -> None:
    runs = Runs.of(np.zeros((3, 4), np.uint8))
    sum_R = score_pixels(runs, np.ones((2, 1, 1), np.float32), (3, 4))
    assert class_scores(runs, sum_R, 2) == (0, 0)
    assert find_instances(runs, sum_R, (3, 4), 0.001) == ()
