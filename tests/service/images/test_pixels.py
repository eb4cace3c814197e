"""Images that come as pixels: the same as decoded ones, or just what the model is to see."""

import io

import numpy as np
import pytest
from PIL import Image

from service.errors import InvalidRequest
from service.images.codec import ImageLimits
from service.images.preparation import ImagePreparer, SizeRule, pixels_size, take_planes

LIMITS = ImageLimits(max_bytes=10_000_000, max_pixels=20_000)
RULE = SizeRule(resolution=28, fit="aspect", patch_size=14, multiple=14)
PREPARER = ImagePreparer(LIMITS, max_patches=64)
NOISE_HW3 = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def test_uint8_pixels_become_what_a_file_of_them_becomes() -> None:
    stream = io.BytesIO()
    Image.fromarray(NOISE_HW3).save(stream, "PNG")
    as_file = PREPARER.prepare(stream.getvalue(), RULE, param="images[0]")
    as_pixels = PREPARER.prepare(NOISE_HW3, RULE, param="images[0]")
    np.testing.assert_array_equal(as_file.pixels_3HW, as_pixels.pixels_3HW)
    assert as_file.size_hw == as_pixels.size_hw == (40, 60)
    assert PREPARER.num_patches(NOISE_HW3, RULE, param="") == 2 * 3


def test_float32_pixels_are_taken_as_they_are() -> None:
    planes_3HW = np.random.default_rng(0).random((3, 42, 28), dtype=np.float32)
    prepared = PREPARER.prepare(planes_3HW, RULE, param="images[0]")
    np.testing.assert_array_equal(prepared.pixels_3HW, planes_3HW)
    assert prepared.pixels_3HW is not planes_3HW
    assert prepared.size_hw == (42, 28)
    assert PREPARER.num_patches(planes_3HW, RULE, param="") == 6


def test_what_does_not_lie_as_runtimes_want_it_is_copied_so() -> None:
    raw = b"x" + np.zeros((3, 14, 14), np.float32).tobytes()
    unaligned_3HW = np.frombuffer(memoryview(raw)[1:], np.float32).reshape(3, 14, 14)
    assert take_planes(unaligned_3HW, param="").flags.aligned


@pytest.mark.parametrize("value", [-0.01, 1.01, np.nan, np.inf])
def test_values_outside_0_to_1_are_refused(value: float) -> None:
    planes_3HW = np.zeros((3, 14, 14), np.float32)
    planes_3HW[1, 2, 3] = value
    with pytest.raises(InvalidRequest, match=r"images\[2\].*\[0, 1\]"):
        take_planes(planes_3HW, param="images[2]")


def test_the_limits_hold() -> None:
    with pytest.raises(InvalidRequest, match="at most 20000"):
        pixels_size(np.zeros((1, 20_001, 3), np.uint8), LIMITS, param="images[0]")
    with pytest.raises(InvalidRequest, match="65 patches"):
        PREPARER.num_patches(np.zeros((3, 14 * 65, 14), np.float32), RULE, param="images[0]")
