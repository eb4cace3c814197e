"""Polygons and run lengths reproduce the label map, as pycocotools reads them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pycocotools import mask as coco

from service.outputs.contours import class_polygons, class_runs, compress_counts

# Polygons filled by pycocotools give the masks back.

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
def test_polygons_of_noise_fill_to_the_same_mask(
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


# Run lengths equal those of pycocotools.


def check_runs(labels_HW: NDArray[np.unsignedinteger], num_classes: int) -> None:
    runs = class_runs(labels_HW, num_classes)
    texts = compress_counts([run.counts for run in runs])
    assert len(runs) == len(texts) == num_classes
    for label, (run, text) in enumerate(zip(runs, texts, strict=True), start=1):
        is_in_HW = np.asfortranarray(labels_HW == label)
        judged = coco.encode(is_in_HW.astype(np.uint8))
        assert text == judged["counts"].decode()
        assert run.area == coco.area(judged) == is_in_HW.sum()
        assert list(run.box) == coco.toBbox(judged).tolist()
        plain = coco.frPyObjects(
            {"size": is_in_HW.shape, "counts": run.counts.tolist()}, *is_in_HW.shape
        )
        np.testing.assert_array_equal(coco.decode(plain), is_in_HW)


@given(
    seed=st.integers(0, 2**32 - 1),
    size_hw=st.tuples(sides, sides),
    num_classes=st.integers(1, 5),
    dtype=st.sampled_from([np.uint8, np.uint16]),
)
@settings(deadline=None, max_examples=150)
def test_noise_is_encoded_as_pycocotools_does(
    seed: int, size_hw: tuple[int, int], num_classes: int, dtype: type[np.unsignedinteger]
) -> None:
    # One class more than is asked for: some labels count as nothing.
    labels_HW = np.random.default_rng(seed).integers(0, num_classes + 2, size_hw).astype(dtype)
    check_runs(labels_HW, num_classes)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("size_hw", [(1, 3000), (3000, 1), (701, 499)])
def test_long_runs_are_encoded_as_pycocotools_does(
    size_hw: tuple[int, int], dtype: type[np.unsignedinteger]
) -> None:
    y, x = np.ogrid[: size_hw[0], : size_hw[1]]
    check_runs(((x // 170 + y // 90) % 4).astype(dtype), 4)


def test_an_absent_class_has_one_run_outside() -> None:
    (run,) = class_runs(np.zeros((3, 4), np.uint8), 1)
    assert (run.counts.tolist(), run.area, run.box) == ([12], 0, (0, 0, 0, 0))
