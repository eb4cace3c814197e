"""Maps as PNG: millimetres come back, colours keep the order, nothing is a number that is none."""

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from service.outputs.maps import (
    colour_table,
    encode_depth_png,
    encode_millimetres_png,
    encode_normals_png,
)


def opened(png: bytes) -> Image.Image:
    Image.open(io.BytesIO(png)).verify()
    return Image.open(io.BytesIO(png))


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 300), (300, 1), (37, 61)])
def test_millimetres_come_back(size_hw: tuple[int, int]) -> None:
    depth_HW = np.random.default_rng(0).random(size_hw, dtype=np.float32) * 10
    image = opened(encode_millimetres_png(depth_HW))
    assert image.mode in {"I;16", "I"}
    assert np.abs(np.asarray(image) / 1000 - depth_HW).max() <= 0.000501


def test_what_is_too_far_or_behind_is_cut() -> None:
    depth_HW = np.array([[-1, 0, 65.535, 70, 3e38]], np.float32)
    image = opened(encode_millimetres_png(depth_HW))
    assert np.asarray(image).tolist() == [[0, 0, 65535, 65535, 65535]]


def test_colours_go_from_the_nearest_to_the_farthest() -> None:
    depth_HW = np.array([[2.0, 3.0, 4.0]], np.float32)
    drawn = np.asarray(opened(encode_depth_png(depth_HW)).convert("RGB"))[0]
    table = colour_table()
    np.testing.assert_array_equal(drawn[[0, 2]], table[[0, 255]])
    assert any((drawn[1] == table[index]).all() for index in (127, 128))


@pytest.mark.parametrize("value", [0.001, 7.0])
def test_one_depth_everywhere_has_one_colour(value: float) -> None:
    drawn = np.asarray(opened(encode_depth_png(np.full((4, 5), value, np.float32))).convert("RGB"))
    assert (drawn == colour_table()[0]).all()


def test_normals_are_shown_as_usual() -> None:
    normals_HW3: NDArray[np.float32] = np.array([[[1, -1, 0], [0, 0, 0]]], np.float32)
    drawn = np.asarray(opened(encode_normals_png(normals_HW3)))
    assert drawn.tolist() == [[[255, 0, 128], [128, 128, 128]]]
