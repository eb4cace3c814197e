"""Scores of maps against hand-computed errors, with intervals and paired differences."""

from typing import Any

import numpy as np
import pytest

from model.graphs import DenseTask
from training.dense.score import Counts, counts_of, entries, measure

UP = (0.0, 1.0, 0.0)


def compared(task: DenseTask, maps: Any, truths: Any) -> Counts:
    return counts_of(task, [measure(task, *pair) for pair in zip(maps, truths, strict=True)])


def constant(metres: float, side: int = 2) -> Any:
    return np.full((side, side), metres, np.float32)


def test_depth_is_averaged_over_images() -> None:
    truths = [constant(metres, 4) for metres in (1.0, 2.0, 4.0)]
    truths[0][0] = np.nan  # does not count
    maps = [constant(metres) for metres in (1.1, 3.0, 4.0)]
    rows = {
        "head": compared("depth", maps, truths),
        "mean": compared("depth", [maps[1]] * 3, truths),
    }
    found = {(entry.row, entry.metric): entry for entry in entries("depth", "rooms", rows)}
    assert found["head", "RMSE (m)"].value == pytest.approx((0.1 + 1 + 0) / 3, abs=1e-3)
    assert found["mean", "RMSE (m)"].value == pytest.approx((2 + 1 + 1) / 3, abs=1e-3)
    assert found["head", "AbsRel (%)"].value == pytest.approx(100 * (0.1 + 0.5) / 3, abs=1e-2)
    assert found["head", "delta1 (%)"].value == pytest.approx(200 / 3, abs=1e-2)
    assert found["head - mean", "RMSE (m)"].value == pytest.approx(0.367 - 1.333, abs=2e-3)
    low, high = (getattr(found["head", "RMSE (m)"], side) for side in ("low", "high"))
    assert low <= 0.367 <= high
    assert low < high
    assert all(entry.count == 3 for entry in found.values())


def test_angles_are_averaged_over_pixels() -> None:
    angle = np.deg2rad(20)
    tilted = np.stack([constant(x) for x in (np.sin(angle), np.cos(angle), 0)])
    away = np.stack([constant(x) for x in (1, 0, 0)])
    truths = [np.full((4, 4, 3), UP, np.float32) for _ in range(3)]
    truths[2][1:] = np.nan  # four pixels of the third image count
    rows = {"head": compared("normals", [tilted, tilted, away], truths)}
    found = {entry.metric: entry.value for entry in entries("normals", "rooms", rows)}
    assert found["mean angle (degrees)"] == pytest.approx((32 * 20 + 4 * 90) / 36, abs=1e-2)
    assert found["under 30 degrees (%)"] == pytest.approx(100 * 32 / 36, abs=1e-2)


def test_masks_are_those_of_the_largest_logits_and_compared_over_all_images() -> None:
    left = np.array([[[1.0, 0.0]], [[0.0, 1.0]], [[-9.0, -9.0]]], np.float32)
    truth = np.zeros((2, 4), np.int64)
    truth[:, 2:] = 1
    other = truth.copy()
    other[:, 3] = -1  # does not count
    other[0, 0] = 2
    rows = {"head": compared("segmentation", [left, left], [truth, other])}
    found = {entry.metric: entry.value for entry in entries("segmentation", "scenes", rows)}
    assert found["pixel accuracy"] == pytest.approx(100 * 13 / 14, abs=1e-2)
    # Class 0: 7 of 8; class 1: 6 of 6; class 2 is never found.
    assert found["mIoU"] == pytest.approx((100 * 7 / 8 + 100 + 0) / 3, abs=1e-2)
