"""Labels by the graph of a reduction are those of `segment`, on any size, classes and background.

Shapes: N patches, D embedding width, K classes, H W pixels.
"""

from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from model.pixel_labels import (
    LABELS,
    MAX_BYTES,
    labelled_map,
    objection,
    pixel_labels,
    working_bytes,
)
from model.reduction import Reduced, Reduction
from model.runtime.reducer import OnnxReducer, open_reducer
from model.segmentation import Background, cosine_map, segment, upsample_bilinear
from model.winner_map import Labels

WIDTH = 24
NONE = Background()


@pytest.fixture(scope="module")
def reducer() -> OnnxReducer:
    opened = open_reducer("cpu")
    assert opened is not None
    return opened


def vectors(count: int, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((count, WIDTH), np.float32)


@pytest.mark.parametrize("background", [NONE, Background(threshold=0.15), Background(threshold=-1)])
@pytest.mark.parametrize("num_background", [0, 2])
@pytest.mark.parametrize(
    ("grid_hw", "size_hw", "num_classes"),
    [
        ((16, 16), (240, 320), 22),
        ((32, 43), (480, 640), 5),
        ((7, 13), (101, 53), 6),
        ((13, 7), (13, 7), 3),
        ((20, 9), (9, 4), 150),
        ((1, 1), (9, 5), 3),
        ((3, 5), (1, 1), 4),
        ((1, 6), (333, 2), 255),
    ],
)
def test_labels_differ_from_those_of_segment_only_where_values_are_equal(
    reducer: OnnxReducer,
    grid_hw: tuple[int, int],
    size_hw: tuple[int, int],
    num_classes: int,
    num_background: int,
    background: Background,
) -> None:
    rule = Background(threshold=background.threshold, num_classes=num_background)
    patches_ND, classes_KD = vectors(grid_hw[0] * grid_hw[1], 1), vectors(num_classes, 2)
    expected = segment(patches_ND, classes_KD, grid_hw=grid_hw, size_hw=size_hw, background=rule)
    labels_HW = run(reducer, patches_ND, classes_KD, grid_hw, size_hw, rule)
    assert labels_HW.dtype == np.uint8
    differ_HW = labels_HW != expected.labels_HW
    assert np.count_nonzero(differ_HW) <= differ_HW.size // 10_000
    if differ_HW.any():
        value_KHW = upsample_bilinear(cosine_map(patches_ND, classes_KD, grid_hw), size_hw)
        floor_1HW = np.full((1, *size_hw), rule.threshold or -2.0, np.float32)
        two_best = np.sort(np.concatenate([value_KHW, floor_1HW])[:, differ_HW], axis=0)[-2:]
        assert np.ptp(two_best, axis=0).max() < 1e-6


def run(
    reducer: OnnxReducer,
    patches_ND: NDArray[np.float32],
    classes_KD: NDArray[np.float32],
    grid_hw: tuple[int, int],
    size_hw: tuple[int, int],
    background: Background = NONE,
) -> Labels:
    reduction = pixel_labels(
        classes_KD, source="values", grid_hw=grid_hw, size_hw=size_hw, background=background
    )
    assert reduction is not None
    labels_HW: Labels = reducer.run_on_copy(reduction, patches_ND)[LABELS]
    return labels_HW


def test_one_class_is_everywhere_unless_a_threshold_is_higher(reducer: OnnxReducer) -> None:
    patches_ND = np.ones((4, WIDTH), np.float32)
    one_KD = np.ones((1, WIDTH), np.float32)
    assert (run(reducer, patches_ND, one_KD, (2, 2), (5, 7)) == 1).all()
    high = Background(threshold=0.9)
    patches_ND[:2] *= -1
    labels_HW = run(reducer, patches_ND, one_KD, (2, 2), (4, 3), high)
    assert labels_HW.tolist() == [[0, 0, 0]] * 3 + [[1, 1, 1]]


def test_the_first_of_equal_classes_wins_and_empty_patches_have_no_cosine(
    reducer: OnnxReducer,
) -> None:
    classes_KD = np.ones((3, WIDTH), np.float32)
    classes_KD[0] *= -1
    patches_ND = np.ones((2, WIDTH), np.float32)
    assert (run(reducer, patches_ND, classes_KD, (1, 2), (3, 4)) == 2).all()
    empty_ND = np.zeros((2, WIDTH), np.float32)
    assert (run(reducer, empty_ND, classes_KD, (1, 2), (3, 4)) == 1).all()


def test_a_map_of_the_device_has_the_counts_and_cosines_of_segment(reducer: OnnxReducer) -> None:
    patches_ND, classes_KD = vectors(12, 1), vectors(5, 2)
    rule = Background(threshold=0.1, num_classes=2)
    sizes: dict[str, Any] = {"grid_hw": (3, 4), "size_hw": (40, 30), "background": rule}
    expected = segment(patches_ND, classes_KD, **sizes)
    for with_cosines in (True, False):
        reduction = pixel_labels(classes_KD, source="values", with_cosines=with_cosines, **sizes)
        assert reduction is not None
        found = labelled_map(reducer.run_on_copy(reduction, patches_ND), 3, (3, 4))
        np.testing.assert_array_equal(found.labels_HW, expected.labels_HW)
        assert found.counts.tolist() == expected.counts.tolist()
        assert found.score_HW is None
        if with_cosines:
            assert found.cosine_Khw is not None
            assert expected.cosine_Khw is not None
            np.testing.assert_allclose(found.cosine_Khw, expected.cosine_Khw, atol=1e-6)
        else:
            assert found.cosine_Khw is None


def test_what_needs_more_than_8_bits_or_much_memory_is_left_to_the_host() -> None:
    def made(num_classes: int, size_hw: tuple[int, int]) -> Reduction | None:
        return pixel_labels(
            vectors(num_classes, 0),
            source="patches",
            grid_hw=(32, 32),
            size_hw=size_hw,
            background=NONE,
        )

    assert made(256, (8, 8)) is None
    assert made(255, (8, 8)) is not None
    assert made(150, (480, 640)) is not None
    assert made(22, (3000, 4000)) is None
    assert working_bytes(22, (32, 32), (3000, 4000)) > MAX_BYTES
    assert working_bytes(150, (32, 32), (480, 640)) < MAX_BYTES
    # An image of one column: its matrix is what is large.
    assert working_bytes(1, (98, 1), (1_000_000, 1)) > MAX_BYTES


def test_a_device_that_labels_otherwise_is_found() -> None:
    found = open_reducer("cpu")
    assert found is not None
    assert objection(found.run_on_copy, must_be_faster=False) is None

    def shifted(reduction: Reduction, patches_ND: NDArray[np.float32]) -> Reduced:
        reduced = found.run_on_copy(reduction, patches_ND)
        return {LABELS: np.roll(reduced[LABELS], 1, axis=1)}

    assert "labels of a trial differ" in str(objection(shifted, must_be_faster=False))


@pytest.mark.parametrize(("host_s", "device_s"), [(0.004, 0.001), (0.004, 0.005)])
def test_a_device_that_is_slower_than_the_cpu_is_found(
    monkeypatch: pytest.MonkeyPatch, reducer: OnnxReducer, host_s: float, device_s: float
) -> None:
    def times() -> Iterator[float]:
        yield from (0.0, host_s, 1.0, 1.0 + device_s)

    clock = SimpleNamespace(perf_counter=partial(next, times()))
    monkeypatch.setattr("model.pixel_labels.time", clock)
    slow = "a trial took 5.0 ms there, and 4.0 ms on the CPU"
    found = objection(reducer.run_on_copy, must_be_faster=True)
    assert found == (slow if device_s > host_s else None)
