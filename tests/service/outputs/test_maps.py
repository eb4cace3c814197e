"""Depth and normal maps as PNG."""

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from service.outputs.colours import COLOUR_SCALE
from service.outputs.maps import (
    encode_depth_png,
    encode_millimetres_png,
    encode_normals_png,
)


def opened(png: bytes) -> Image.Image:
    Image.open(io.BytesIO(png)).verify()
    return Image.open(io.BytesIO(png))


@pytest.mark.parametrize("size_hw", [(1, 1), (37, 61)])
def test_millimetres_are_exact_and_clipped_to_the_range(size_hw: tuple[int, int]) -> None:
    depth_HW = np.random.default_rng(0).random(size_hw, dtype=np.float32) * 10
    image = opened(encode_millimetres_png(depth_HW))
    assert image.mode in {"I;16", "I"}
    assert np.abs(np.asarray(image) / 1000 - depth_HW).max() <= 0.000501
    depth_HW = np.array([[-1, 0, 65.535, 70, 3e38]], np.float32)
    clipped = opened(encode_millimetres_png(depth_HW))
    assert np.asarray(clipped).tolist() == [[0, 0, 65535, 65535, 65535]]


def test_depth_colours_go_from_the_nearest_to_the_farthest_point() -> None:
    depth_HW = np.array([[2.0, 3.0, 4.0]], np.float32)
    drawn = np.asarray(opened(encode_depth_png(depth_HW)).convert("RGB"))[0]
    np.testing.assert_array_equal(drawn[[0, 2]], COLOUR_SCALE[[0, 255]])
    assert any((drawn[1] == COLOUR_SCALE[index]).all() for index in (127, 128))
    for value in (0.001, 7.0):
        flat = opened(encode_depth_png(np.full((4, 5), value, np.float32))).convert("RGB")
        assert (np.asarray(flat) == COLOUR_SCALE[0]).all()


def test_normals_map_to_rgb() -> None:
    normals_HW3: NDArray[np.float32] = np.array([[[1, -1, 0], [0, 0, 0]]], np.float32)
    drawn = np.asarray(opened(encode_normals_png(normals_HW3)))
    assert drawn.tolist() == [[[255, 0, 128], [128, 128, 128]]]
