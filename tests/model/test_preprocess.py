"""Sizes are multiples near the requested one; images become float32 planes in [0, 1]."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from model.preprocess import Fit, prepare_image, target_size

sides = st.integers(1, 20_000)


@given(sides, sides, st.sampled_from([14, 28]), st.integers(1, 20))
def test_aspect_keeps_the_shorter_side_and_the_proportions(
    height: int, width: int, multiple: int, count: int
) -> None:
    options: Any = {"resolution": multiple * count, "multiple": multiple}
    size_hw = target_size(height, width, fit="aspect", **options)
    assert all(side % multiple == 0 and side >= multiple for side in size_hw)
    assert min(size_hw) == multiple * count
    exact = multiple * count * max(height, width) / min(height, width)
    assert abs(max(size_hw) - exact) <= multiple / 2 + 1e-6 * exact
    assert target_size(width, height, fit="aspect", **options) == size_hw[::-1]
    assert target_size(height, width, fit="squash", **options) == (multiple * count,) * 2


@pytest.mark.parametrize("fit", ["squash", "aspect"])
@pytest.mark.parametrize("resolution", [0, -14, 15, 7])
def test_a_resolution_that_is_no_multiple_is_refused(fit: Fit, resolution: int) -> None:
    with pytest.raises(ValueError, match="positive multiple of 14"):
        target_size(480, 640, resolution=resolution, fit=fit)


def test_an_empty_image_and_an_unknown_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one pixel"):
        target_size(0, 640, resolution=224, fit="squash")
    with pytest.raises(ValueError, match="'squash' or 'aspect'"):
        target_size(480, 640, resolution=224, fit="crop")  # type: ignore[arg-type]


def test_an_image_of_the_right_size_is_only_rescaled() -> None:
    pixels_HW3 = np.random.default_rng(0).integers(0, 256, (14, 28, 3), dtype=np.uint8)
    expected = pixels_HW3.transpose(2, 0, 1).astype(np.float32) / np.float32(255)
    planes_3HW = prepare_image(pixels_HW3, (14, 28))
    np.testing.assert_array_equal(planes_3HW, expected)
    assert planes_3HW.dtype == np.float32
    assert planes_3HW.flags.c_contiguous


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((14, 14, 3), dtype=np.float32),
        np.zeros((14, 14), dtype=np.uint8),
        np.zeros((14, 14, 4), dtype=np.uint8),
    ],
)
def test_an_array_that_is_no_rgb_image_is_refused(pixels: NDArray[Any]) -> None:
    with pytest.raises(ValueError, match="uint8"):
        prepare_image(pixels, (14, 14))
