"""Scores of maps against hand-computed errors, with intervals and paired differences."""

import numpy as np
import pytest

from training.data.renders.rooms import Render
from training.dense.score import compare, entries

UP = (0.0, 1.0, 0.0)


def render(depth: float) -> Render:
    return Render(
        pixels_SS3=np.zeros((4, 4, 3), np.uint8),
        depth_SS=np.full((4, 4), depth, np.float32),
        normals_SS3=np.full((4, 4, 3), UP, np.float32),
    )


TRUTH = [render(1.0), render(2.0), render(4.0)]


def test_depth_is_averaged_over_images() -> None:
    maps = [np.full((2, 2), metres, np.float32) for metres in (1.1, 3.0, 4.0)]
    rows = {"head": compare("depth", maps, TRUTH), "mean": compare("depth", [maps[1]] * 3, TRUTH)}
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
    tilted = np.stack([np.full((2, 2), x, np.float32) for x in (np.sin(angle), np.cos(angle), 0)])
    away = np.stack([np.full((2, 2), x, np.float32) for x in (1, 0, 0)])
    rows = {"head": compare("normals", [tilted, tilted, away], TRUTH)}
    found = {entry.metric: entry.value for entry in entries("normals", "rooms", rows)}
    assert found["mean angle (degrees)"] == pytest.approx((20 + 20 + 90) / 3, abs=1e-2)
    assert found["under 30 degrees (%)"] == pytest.approx(200 / 3, abs=1e-2)
