"""Segmentation by windows equals the notebook's."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from model.segmentation import Background, SegmentationMap
from service.images import Windows
from service.outputs.slide import Geometry, segment_windows
from service.waiting import run_slice

WINDOWS = Windows.of(28)


def run(*arguments: Any, **options: Any) -> SegmentationMap:
    found = run_slice(segment_windows(*arguments, **options), math.inf)
    assert found is not None
    return found[0]


def reference(
    features: list[Any], classes_KD: Any, geometry: Geometry, *, as_cosines: bool = False
) -> Any:
    """Loops and whole arrays: probabilities or cosines of every pixel of the image, [K, H, W]."""
    stride, side = 21, 28
    height, width = geometry.scaled_hw
    sums_KHW = torch.zeros(len(classes_KD), height, width)
    hits_HW = torch.zeros(height, width)
    waiting = iter(features)
    for row in range(max(height - side + stride - 1, 0) // stride + 1):
        for column in range(max(width - side + stride - 1, 0) // stride + 1):
            bottom, right = min(row * stride + side, height), min(column * stride + side, width)
            top, left = max(bottom - side, 0), max(right - side, 0)
            patches_ND = F.normalize(torch.from_numpy(next(waiting)), dim=-1)
            cosine_KN = torch.from_numpy(classes_KD) @ patches_ND.T
            map_1Khw = cosine_KN.reshape(1, len(classes_KD), *geometry.grid_hw)
            large = F.interpolate(map_1Khw, size=(side, side), mode="bilinear")[0]
            sums_KHW[:, top:bottom, left:right] += large if as_cosines else large.softmax(dim=0)
            hits_HW[top:bottom, left:right] += 1
    assert next(waiting, None) is None
    mean_KHW = sums_KHW / hits_HW
    return F.interpolate(mean_KHW[None], size=geometry.size_hw, mode="bilinear")[0].numpy()


def made(
    scaled_hw: tuple[int, int], size_hw: tuple[int, int], num_classes: int, seed: int = 0
) -> Any:
    random = np.random.default_rng(seed)
    geometry = Geometry((2, 2), size_hw, scaled_hw, WINDOWS)
    features = [
        random.standard_normal((4, 6)).astype(np.float32) for _ in WINDOWS.corners(scaled_hw)
    ]
    classes_KD = random.standard_normal((num_classes, 6)).astype(np.float32)
    classes_KD /= np.linalg.norm(classes_KD, axis=1, keepdims=True)
    return features, classes_KD, geometry


@pytest.mark.parametrize(
    ("scaled_hw", "size_hw"),
    [((28, 28), (28, 28)), ((28, 60), (17, 41)), ((53, 71), (160, 85)), ((28, 30), (1, 2))],
)
def test_labels_are_those_of_the_notebook_and_scores_are_cosines(
    scaled_hw: tuple[int, int], size_hw: tuple[int, int]
) -> None:
    features, classes_KD, geometry = made(scaled_hw, size_hw, 5)
    expected_KHW = reference(features, classes_KD, geometry)
    mask = run(features, classes_KD, geometry, Background(), with_scores=True)
    assert mask.score_HW is not None
    cosine_KHW = reference(features, classes_KD, geometry, as_cosines=True)
    cosine_HW = np.take_along_axis(cosine_KHW, mask.labels_HW[None].astype(int) - 1, axis=0)[0]
    np.testing.assert_allclose(mask.score_HW, cosine_HW, rtol=1e-5, atol=1e-6)
    top, second = -np.sort(-expected_KHW, axis=0)[:2]
    is_clear_HW = top - second > 1e-6
    assert is_clear_HW.mean() > 0.99
    labels_HW = expected_KHW.argmax(axis=0) + 1
    np.testing.assert_array_equal(mask.labels_HW[is_clear_HW], labels_HW[is_clear_HW])
    shares = np.bincount(mask.labels_HW.ravel(), minlength=6) / mask.labels_HW.size
    np.testing.assert_allclose(mask.counts / mask.labels_HW.size, shares)


def test_background_is_by_the_cosine_of_the_class_and_by_classes() -> None:
    features, classes_KD, geometry = made((28, 49), (28, 49), 4, seed=1)
    winner_HW = reference(features, classes_KD, geometry).argmax(axis=0)
    cosine_KHW = reference(features, classes_KD, geometry, as_cosines=True)
    cosine_HW = np.take_along_axis(cosine_KHW, winner_HW[None], axis=0)[0]
    threshold = float(np.quantile(cosine_HW, 0.3))
    background = Background(threshold=threshold, num_classes=1)
    mask = run(features, classes_KD, geometry, background, with_scores=False)
    labels_HW = winner_HW + 1
    is_last_HW, is_low_HW = labels_HW == 4, cosine_HW < threshold
    assert (is_last_HW & ~is_low_HW).mean() > 0.05
    assert (is_low_HW & ~is_last_HW).mean() > 0.05
    labels_HW[is_last_HW | is_low_HW] = 0
    assert (labels_HW != 0).mean() > 0.05
    assert (mask.labels_HW == labels_HW).mean() > 0.999
    assert mask.score_HW is None
    assert len(mask.counts) == 4


def test_cosines_at_patches_are_means_over_windows() -> None:
    geometry = Geometry((2, 2), (90, 119), (53, 70), WINDOWS)
    features = [np.full((4, 6), 1, np.float32) for _ in WINDOWS.corners((53, 70))]
    features[0][:, 0] = 7
    classes_KD = np.eye(6, dtype=np.float32)[:2]
    found = run(features, classes_KD, geometry, Background(), with_scores=False)
    assert found.cosine_Khw is not None
    assert found.cosine_Khw.shape == (2, 4, 5)
    # The upper left patch is in the first window only, the lower right one in the last only.
    first, last = 7 / np.sqrt(54), 1 / np.sqrt(6)
    np.testing.assert_allclose(found.cosine_Khw[0, [0, -1], [0, -1]], [first, last], rtol=1e-5)
    assert first > found.cosine_Khw[0, 1, 1] > last
