"""Masks of objects against ones that are counted by hand."""

import numpy as np
import pytest

from model.scores.objects import (
    THRESHOLDS_T,
    absent_names,
    boundary_f,
    fitted_thresholds,
    iou,
    iou_curve,
    objects_of,
)


def test_the_curve_is_the_iou_at_every_threshold() -> None:
    rng = np.random.default_rng(0)
    truth_HW = rng.integers(-2, 2, (20, 30))
    called_HW = rng.integers(0, 2, (20, 30))
    score_HW = rng.choice(THRESHOLDS_T, (20, 30))  # also exactly at a threshold
    assert objects_of(truth_HW) == [0, 1]
    curve_T = iou_curve(truth_HW, called_HW, score_HW, 1)
    for index in range(0, len(THRESHOLDS_T), 40):
        above_HW = np.where(score_HW >= THRESHOLDS_T[index], called_HW, -2)
        assert curve_T[index] == pytest.approx(iou(truth_HW, above_HW, 1))


def test_a_threshold_comes_from_the_other_images() -> None:
    # Images 0 and 1 are best at one threshold, image 2 at another, and image 3 has no object.
    curves = [[np.eye(len(THRESHOLDS_T))[index]] for index in (10, 10, 200)]
    assert fitted_thresholds([*curves, []]).tolist() == [THRESHOLDS_T[10]] * 4


def test_outlines_match_within_two_percent_of_the_diagonal() -> None:
    truth_HW = np.full((60, 80), -2)  # the diagonal is 100, so 2 pixels match
    truth_HW[20:40, 20:60] = 0

    def shifted(pixels: int) -> float:
        return boundary_f(truth_HW, np.roll(truth_HW, pixels, axis=0), 0)

    assert shifted(0) == shifted(2) == 1
    assert shifted(3) < 0.5
    assert boundary_f(truth_HW, np.full((60, 80), -2), 0) == 0
    # An object that fills the image has no boundary, and neither has the answer.
    filled_HW = np.zeros((60, 80), int)
    assert boundary_f(filled_HW, filled_HW, 0) == 1


def test_absent_names_are_the_same_every_time_and_differ_by_image() -> None:
    names = [f"name {index}" for index in range(40)]
    first = absent_names(names, names[:30], "a.jpg")
    assert first == absent_names(names[::-1], names[:30], "a.jpg")
    assert len(first) == 6
    assert not {*first} & {*names[:30]}
    assert first != absent_names(names, names[:30], "b.jpg")
