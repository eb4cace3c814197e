"""Scores of maps against hand-computed errors, with intervals and paired differences."""

from typing import Any

import numpy as np
import pytest

from model.graphs import DenseTask
from model.manifest import ScoreEntry
from training.dense.score import counts_of, entries, measure


def scored(task: DenseTask, truths: Any, **rows: Any) -> dict[tuple[str, str], ScoreEntry]:
    counts = {
        row: counts_of(task, [measure(task, *pair) for pair in zip(maps, truths, strict=True)])
        for row, maps in rows.items()
    }
    return {(one.row, one.metric): one for one in entries(task, "rooms", counts)}


def constant(metres: float, side: int = 2) -> Any:
    return np.full((side, side), metres, np.float32)


def test_depth_is_averaged_over_images() -> None:
    truths = [constant(metres, 4) for metres in (1.0, 2.0, 4.0)]
    truths[0][0] = np.nan  # does not count
    maps = [constant(metres) for metres in (1.1, 3.0, 4.0)]
    found = scored("depth", truths, head=maps, mean=[maps[1]] * 3)
    expected = {
        ("head", "RMSE (m)"): (0.1 + 1 + 0) / 3,
        ("mean", "RMSE (m)"): (2 + 1 + 1) / 3,
        ("head", "AbsRel (%)"): 100 * (0.1 + 0.5) / 3,
        ("head", "delta1 (%)"): 200 / 3,
        ("head - mean", "RMSE (m)"): 0.367 - 1.333,
    }
    values = {key: found[key].value for key in expected}
    assert values == pytest.approx(expected, abs=2e-3, rel=1e-3)
    own = found["head", "RMSE (m)"]
    assert own.low is not None
    assert own.high is not None
    assert own.low < 0.367 < own.high
    assert own.count == 3


def test_angles_are_averaged_over_pixels() -> None:
    angle = np.deg2rad(20)
    tilted = np.stack([constant(x) for x in (np.sin(angle), np.cos(angle), 0)])
    away = np.stack([constant(x) for x in (1, 0, 0)])
    truths = [np.full((4, 4, 3), (0.0, 1.0, 0.0), np.float32) for _ in range(3)]
    truths[2][1:] = np.nan  # four pixels of the third image count
    found = scored("normals", truths, head=[tilted, tilted, away])
    assert found["head", "mean angle (degrees)"].value == pytest.approx(1000 / 36, abs=1e-2)
    assert found["head", "under 30 degrees (%)"].value == pytest.approx(3200 / 36, abs=1e-2)


def test_masks_are_those_of_the_largest_logits_and_compared_over_all_images() -> None:
    left = np.array([[[1.0, 0.0]], [[0.0, 1.0]], [[-9.0, -9.0]]], np.float32)
    truth = np.tile([0, 0, 1, 1], (2, 1))
    other = truth.copy()
    other[:, 3] = -1  # does not count
    other[0, 0] = 2
    found = scored("segmentation", [truth, other], head=[left, left])
    assert found["head", "pixel accuracy"].value == pytest.approx(100 * 13 / 14, abs=1e-2)
    # Class 0: 7 of 8; class 1: 6 of 6; class 2 is never found.
    assert found["head", "mIoU"].value == pytest.approx(100 * (7 / 8 + 1) / 3, abs=1e-2)
