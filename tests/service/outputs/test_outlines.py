"""Polygons and run lengths reproduce the label map, as pycocotools reads them."""

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pycocotools import mask as coco

from service.messages import Holes
from service.outputs import polygons, run_lengths
from service.outputs.polygons import class_polygons, simplify
from service.outputs.run_lengths import class_runs, compress_counts, read_counts
from tests.regions import regions_without_holes

Labels = NDArray[np.unsignedinteger]
# pycocotools' own code is older than NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ impl:DeprecationWarning")
sides = st.integers(1, 14)


def check_polygons(labels_HW: Labels, num_classes: int) -> list[list[list[int]]]:
    """Filled by pycocotools, the polygons of each class give its mask, and do not overlap."""
    found = class_polygons(labels_HW, num_classes)
    assert len(found) == num_classes
    for label, own in enumerate(found, start=1):
        filled_HW = np.zeros(labels_HW.shape, np.uint8)
        if own:
            corners = [[float(v) for v in polygon] for polygon in own]
            filled_HW = coco.decode(coco.merge(coco.frPyObjects(corners, *labels_HW.shape)))
        np.testing.assert_array_equal(filled_HW, labels_HW == label)
        assert all(len(polygon) >= 8 and len(polygon) % 2 == 0 for polygon in own)
        assert sum(map(area, own)) == (labels_HW == label).sum()
    return found


def area(polygon: list[int]) -> float:
    """By the shoelace formula; cuts add nothing, and holes run in the other direction."""
    x, y = np.array(polygon).reshape(-1, 2).T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def check_runs(labels_HW: Labels, num_classes: int) -> None:
    """The runs of each class are those of pycocotools."""
    runs = class_runs(labels_HW, num_classes)
    texts = compress_counts([run.counts for run in runs])
    assert len(runs) == len(texts) == num_classes
    for label, (run, text) in enumerate(zip(runs, texts, strict=True), start=1):
        is_in_HW = np.asfortranarray(labels_HW == label)
        expected = coco.encode(is_in_HW.astype(np.uint8))
        assert text == expected["counts"].decode()
        assert read_counts(text).tolist() == run.counts.tolist()
        assert run.area == coco.area(expected) == is_in_HW.sum()
        assert list(run.box) == coco.toBbox(expected).tolist()
        plain = {"size": is_in_HW.shape, "counts": run.counts.tolist()}
        decoded_HW = coco.decode(coco.frPyObjects(plain, *is_in_HW.shape))
        np.testing.assert_array_equal(decoded_HW, is_in_HW)


@given(
    seed=st.integers(0, 2**32 - 1),
    size_hw=st.tuples(sides, sides),
    num_classes=st.integers(1, 4),
    dtype=st.sampled_from([np.uint8, np.uint16]),
)
@settings(deadline=None, max_examples=120)
def test_noise_becomes_the_polygons_and_runs_of_its_masks(
    seed: int, size_hw: tuple[int, int], num_classes: int, dtype: type[np.unsignedinteger]
) -> None:
    # Labels above `num_classes` count as nothing.
    labels_HW = np.random.default_rng(seed).integers(0, num_classes + 2, size_hw).astype(dtype)
    check_polygons(labels_HW, num_classes)
    check_runs(labels_HW, num_classes)


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
    (polygons,) = check_polygons(labels_HW, 1)
    assert len(polygons) == num_polygons


@pytest.mark.parametrize("min_area", [0, 1, 3, 8])
@pytest.mark.parametrize("holes", ["fill", "keep"])
@pytest.mark.parametrize("seed", range(8))
def test_polygons_are_the_regions_without_their_small_holes(
    seed: int, holes: Holes, min_area: int
) -> None:
    drawn_HW = np.random.default_rng(seed).choice(3, (14, 17), p=(0.15, 0.75, 0.1))
    labels_HW = drawn_HW.astype(np.uint8)
    found = class_polygons(labels_HW, 2, holes=holes, min_area=min_area)
    for label, own in enumerate(found, start=1):
        expected = regions_without_holes(labels_HW == label, min_area, is_filled=holes == "fill")
        drawn = [coco.decode(coco.frPyObjects([one], *labels_HW.shape))[..., 0] for one in own]
        assert sorted(one.tobytes() for one in drawn) == sorted(
            one.astype(np.uint8).tobytes() for one in expected
        )


def test_a_filled_polygon_has_no_cut() -> None:
    ring_HW = drawn("1111", "1001", "1111")
    assert class_polygons(ring_HW, 1, holes="fill") == [[[0, 0, 0, 3, 4, 3, 4, 0]]]
    assert class_polygons(ring_HW, 1, min_area=3) == [[[0, 0, 0, 3, 4, 3, 4, 0]]]
    ((kept,),) = class_polygons(ring_HW, 1, min_area=2)
    assert area(kept) == 10
    assert class_polygons(ring_HW, 1, min_area=13) == [[]]


def smooth() -> Labels:
    y, x = np.mgrid[:300, :400] / 50
    heights_HW = 3 + np.floor(2 * np.sin(x * y) + np.cos(2 * x))
    return np.asarray(heights_HW.clip(0, 5), np.uint8)


def test_simplified_outlines_are_within_the_tolerance() -> None:
    tolerance = 3.0
    found = check_polygons(smooth(), 5)
    check_runs(smooth(), 5)
    for polygon in (polygon for own in found for polygon in own):
        corner_P2 = np.array(simplify(polygon, tolerance), float).reshape(-1, 2)
        assert len(corner_P2) >= 3
        along_P2 = np.roll(corner_P2, -1, axis=0) - corner_P2
        for point_2 in np.array(polygon, float).reshape(-1, 2):
            share_P = ((point_2 - corner_P2) * along_P2).sum(axis=1)
            share_P = np.clip(share_P / np.maximum((along_P2**2).sum(axis=1), 1), 0, 1)
            nearest = corner_P2 + share_P[:, None] * along_P2
            assert np.linalg.norm(nearest - point_2, axis=1).min() <= tolerance + 1e-9
    largest = max(found[2], key=len)
    assert len(simplify(largest, tolerance)) < len(largest) / 3
    assert simplify(largest, 0) == largest
    assert simplify([0, 0, 0, 1, 1, 1, 1, 0], 5) == [0, 0, 0, 1, 1, 1, 1, 0], "never a line"


@pytest.mark.parametrize("num_pixels", [1, 20, 70])
def test_bands_change_nothing(monkeypatch: pytest.MonkeyPatch, num_pixels: int) -> None:
    for module in (polygons, run_lengths):
        monkeypatch.setattr(module, "BAND_PIXELS", num_pixels)
    labels_HW = np.random.default_rng(0).integers(0, 4, (9, 11)).astype(np.uint16)
    check_polygons(labels_HW, 3)
    check_runs(labels_HW, 3)


@pytest.mark.parametrize("outline", [class_polygons, class_runs])
def test_outlines_of_a_large_map_take_less_memory_than_the_map(
    outline: Callable[[Labels, int], object],
) -> None:
    labels_HW = np.repeat(np.repeat(np.eye(4, dtype=np.uint8), 1000, 0), 1000, 1)
    tracemalloc.start()
    outline(labels_HW, 1)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < labels_HW.nbytes
