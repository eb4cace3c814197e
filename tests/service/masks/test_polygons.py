"""Polygons filled by pycocotools are the masks again, whatever holes and touching corners."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pycocotools import mask as coco

from service.outputs.contours import class_polygons

Labels = NDArray[np.unsignedinteger]
# pycocotools' own code is older than NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ impl:DeprecationWarning")

sides = st.integers(1, 14)


def fill(polygons: list[list[int]], size_hw: tuple[int, int]) -> NDArray[np.uint8]:
    if not polygons:
        return np.zeros(size_hw, np.uint8)
    parts = coco.frPyObjects([[float(v) for v in polygon] for polygon in polygons], *size_hw)
    filled: NDArray[np.uint8] = coco.decode(coco.merge(parts))
    return filled


def check(labels_HW: Labels, num_classes: int) -> list[list[list[int]]]:
    found = class_polygons(labels_HW, num_classes)
    assert len(found) == num_classes
    for label, polygons in enumerate(found, start=1):
        filled_HW = fill(polygons, labels_HW.shape)
        np.testing.assert_array_equal(filled_HW, labels_HW == label)
        assert all(len(polygon) >= 8 and len(polygon) % 2 == 0 for polygon in polygons)
        # Those of one class do not overlap: together they are as large as it is.
        assert sum(map(area, polygons)) == (labels_HW == label).sum()
    return found


def area(polygon: list[int]) -> float:
    """By the shoelace formula; cuts add nothing, and holes go the other way round."""
    x, y = np.array(polygon).reshape(-1, 2).T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


@given(
    seed=st.integers(0, 2**32 - 1),
    size_hw=st.tuples(sides, sides),
    num_labels=st.integers(2, 5),
    dtype=st.sampled_from([np.uint8, np.uint16]),
)
@settings(deadline=None, max_examples=300)
def test_noise_comes_back(
    seed: int, size_hw: tuple[int, int], num_labels: int, dtype: type[np.unsignedinteger]
) -> None:
    labels_HW = np.random.default_rng(seed).integers(0, num_labels, size_hw).astype(dtype)
    check(labels_HW, num_labels - 1)


def drawn(*rows: str) -> Labels:
    return np.array([[int(letter) for letter in row] for row in rows], np.uint8)


@pytest.mark.parametrize(
    ("labels_HW", "num_polygons"),
    [
        (drawn("111", "111"), 1),
        (drawn("101", "101"), 2),
        (drawn("10", "01"), 2),  # touching at a corner
        (drawn("01", "10"), 2),
        (drawn("111", "101", "111"), 1),  # a hole
        (drawn("11111", "10101", "11111"), 1),  # two on one edge
        (drawn("11111", "10111", "11011", "11111"), 1),  # holes that touch
        (drawn("11111", "10001", "10101", "10001", "11111"), 2),  # an island in a hole
        (drawn("111111", "101111", "101101", "111111"), 1),  # a hole behind a hole
        (drawn("0" * 5, "0" * 5), 0),
    ],
)
def test_holes_and_islands(labels_HW: Labels, num_polygons: int) -> None:
    (polygons,) = check(labels_HW, 1)
    assert len(polygons) == num_polygons


def test_a_rectangle_is_four_corners_on_the_edges_of_its_pixels() -> None:
    assert class_polygons(drawn("000", "011"), 1) == [[[1, 1, 1, 2, 3, 2, 3, 1]]]


def test_smooth_regions_at_full_size_come_back() -> None:
    y, x = np.mgrid[:300, :400] / 50
    labels_HW = (3 + np.floor(2 * np.sin(x * y) + np.cos(2 * x))).clip(0, 5).astype(np.uint8)
    check(labels_HW, 5)
