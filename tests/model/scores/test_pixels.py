"""Errors of depth and normals at single pixels."""

import numpy as np
import pytest

from model.scores.pixels import angles, depth_scores


def test_a_factor_of_just_1_25_is_not_within_it() -> None:
    depth_P = np.array([1.25, 0.8, 1.24, 0.81, 0.0])
    assert depth_scores(depth_P, np.ones(5))[2] == pytest.approx(2 / 5)


def test_an_image_without_a_pixel_does_not_count() -> None:
    assert depth_scores(np.zeros(0), np.zeros(0)) == (0, 0, 0, 0)


def test_angles_are_exact_for_small_ones_and_zero_vectors_are_wrong() -> None:
    angle = np.deg2rad(1e-4)
    found = np.array([(np.sin(angle), 0, np.cos(angle)), (0, 0, 0)])
    truth = np.array([(0.0, 0.0, 1.0)] * 2)
    assert angles(found, truth) == pytest.approx([1e-4, 90], rel=1e-6)
