"""Inputs are checked, and loaded graphs are shared."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from model.runtime.base import check_pixels, check_tokens


@pytest.mark.parametrize(
    ("pixels", "complaint"),
    [
        (np.zeros((1, 3, 14, 14), dtype=np.uint8), "float32"),
        (np.zeros((3, 14, 14), dtype=np.float32), "batch, 3, height, width"),
        (np.zeros((1, 14, 14, 3), dtype=np.float32), "batch, 3, height, width"),
        (np.zeros((0, 3, 14, 14), dtype=np.float32), "batch, 3, height, width"),
        (np.zeros((1, 3, 14, 15), dtype=np.float32), "multiples of 14, not 14 x 15"),
        (np.zeros((1, 3, 0, 14), dtype=np.float32), "multiples of 14"),
    ],
)
def test_invalid_pixels_are_refused(pixels: NDArray[Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        check_pixels(pixels, patch_size=14)


@pytest.mark.parametrize(
    ("token_ids", "mask", "complaint"),
    [
        (np.ones((1, 2), np.int32), np.ones((1, 2), np.int64), "int64"),
        (np.ones((1, 2), np.int64), np.ones((1, 3), np.int64), "both have the shape"),
        (np.ones((2,), np.int64), np.ones((2,), np.int64), "both have the shape"),
        (np.ones((0, 2), np.int64), np.ones((0, 2), np.int64), "both have the shape"),
        (np.ones((1, 0), np.int64), np.ones((1, 0), np.int64), "1 to 64 tokens, not 0"),
        (np.ones((1, 65), np.int64), np.ones((1, 65), np.int64), "1 to 64 tokens, not 65"),
        (np.ones((2, 2), np.int64), np.array([[1, 0], [0, 0]]), "text 1 has no token"),
    ],
)
def test_invalid_tokens_are_refused(
    token_ids: NDArray[Any], mask: NDArray[Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        check_tokens(token_ids, mask, max_tokens=64)
