"""Views as PNG files, read by Pillow."""

import io

import numpy as np
from PIL import Image

from service.outputs.features import encode_view_png
from service.outputs.maps import colour_table
from service.outputs.masks import palette


def test_colours_are_rounded_to_bytes() -> None:
    colours_HW3 = np.random.default_rng(0).random((5, 7, 3), np.float32)
    image = Image.open(io.BytesIO(encode_view_png(colours_HW3, "colors")))
    np.testing.assert_array_equal(np.asarray(image), np.rint(colours_HW3 * 255))


def test_a_component_is_dark_where_it_is_least() -> None:
    image = Image.open(io.BytesIO(encode_view_png(np.array([[0, 0.5, 1]], "f4"), "component")))
    colours_W3 = np.asarray(image.convert("RGB"))[0]
    np.testing.assert_array_equal(colours_W3[[0, 2]], colour_table()[[255, 0]])


def test_groups_are_their_numbers_in_the_colours_of_masks() -> None:
    labels_HW = np.array([[1, 2], [20, 1]], np.uint16)
    image = Image.open(io.BytesIO(encode_view_png(labels_HW, "groups")))
    np.testing.assert_array_equal(np.asarray(image), labels_HW)
    np.testing.assert_array_equal(np.asarray(image.convert("RGB")), palette()[labels_HW])
