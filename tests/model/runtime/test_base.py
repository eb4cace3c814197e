"""Inputs are checked, and loaded graphs are shared."""

import gc
import threading
import weakref
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from model.runtime.base import SharedGraphCache, check_pixels, check_tokens


def test_the_grid_is_rows_and_columns() -> None:
    pixels_B3HW = np.zeros((2, 3, 28, 70), dtype=np.float32)
    assert check_pixels(pixels_B3HW, patch_size=14) == (2, 5)


@pytest.mark.parametrize(
    ("pixels", "complaint"),
    [
        (np.zeros((1, 3, 14, 14), dtype=np.float64), "float32"),
        (np.zeros((1, 3, 14, 14), dtype=np.uint8), "float32"),
        (np.zeros((3, 14, 14), dtype=np.float32), "batch, 3, height, width"),
        (np.zeros((1, 14, 14, 3), dtype=np.float32), "batch, 3, height, width"),
        (np.zeros((0, 3, 14, 14), dtype=np.float32), "batch, 3, height, width"),
        (np.zeros((1, 3, 14, 15), dtype=np.float32), "multiples of 14, not 14 x 15"),
        (np.zeros((1, 3, 0, 14), dtype=np.float32), "multiples of 14"),
    ],
)
def test_other_pixels_are_refused(pixels: NDArray[Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        check_pixels(pixels, patch_size=14)


@pytest.mark.parametrize(
    ("shape", "mask_shape", "dtype", "complaint"),
    [
        ((1, 2), (1, 2), np.int32, "int64"),
        ((1, 2), (1, 3), np.int64, "both have the shape"),
        ((2,), (2,), np.int64, "both have the shape"),
        ((0, 2), (0, 2), np.int64, "both have the shape"),
        ((1, 0), (1, 0), np.int64, "1 to 64 tokens, not 0"),
        ((1, 65), (1, 65), np.int64, "1 to 64 tokens, not 65"),
    ],
)
def test_other_tokens_are_refused(
    shape: tuple[int, ...], mask_shape: tuple[int, ...], dtype: type[np.integer], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        check_tokens(np.ones(shape, dtype=dtype), np.ones(mask_shape, dtype=dtype), max_tokens=64)


def test_a_row_of_padding_is_refused_with_its_index() -> None:
    mask_BL = np.array([[1, 0], [0, 0]])
    with pytest.raises(ValueError, match="text 1 has no token"):
        check_tokens(np.ones((2, 2), dtype=np.int64), mask_BL, max_tokens=64)


class Graph:
    """Something that can be held."""


def test_concurrent_loads_share_one_graph() -> None:
    cache, made = SharedGraphCache(), []

    def load() -> Graph:
        made.append(threading.get_ident())
        return Graph()

    held: list[Graph] = []
    threads = [
        threading.Thread(target=lambda: held.append(cache.take("key", load))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert all(graph is held[0] for graph in held)
    assert cache.take("other", load) is not held[0]


def test_a_graph_without_a_holder_is_freed() -> None:
    cache = SharedGraphCache()
    first = cache.take("key", Graph)
    assert cache.take("key", Graph) is first
    reference = weakref.ref(first)
    del first
    gc.collect()
    assert reference() is None
    assert isinstance(cache.take("key", Graph), Graph)


def test_only_the_removed_graph_is_loaded_again() -> None:
    cache = SharedGraphCache()
    broken = cache.take("key", Graph)
    cache.remove("key", broken)
    fresh = cache.take("key", Graph)
    assert fresh is not broken
    cache.remove("key", broken)  # by another lane that broke on the same
    assert cache.take("key", Graph) is fresh
