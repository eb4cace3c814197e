"""Masks as files: values survive, colours can be told apart."""

import io

import numpy as np
import pytest
from PIL import Image

from service.outputs.masks import (
    class_color,
    encode_mask_png,
    encode_npy,
    encode_overlay_png,
    palette,
)


def test_pixel_values_of_the_png_are_the_labels() -> None:
    labels_HW = np.arange(256, dtype=np.uint16).reshape(8, 32)
    image = Image.open(io.BytesIO(encode_mask_png(labels_HW)))
    assert image.mode == "P"
    np.testing.assert_array_equal(np.asarray(image), labels_HW)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("size_hw", [(1, 1), (1, 300), (300, 1), (37, 61)])
def test_masks_of_any_size_and_noise_come_back(
    size_hw: tuple[int, int], dtype: type[np.unsignedinteger]
) -> None:
    labels_HW = np.random.default_rng(0).integers(0, 256, size_hw).astype(dtype)
    data = encode_mask_png(labels_HW)
    Image.open(io.BytesIO(data)).verify()
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), labels_HW)


def test_the_overlay_is_the_same_however_labels_are_held() -> None:
    random = np.random.default_rng(1)
    pixels_HW3 = random.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    labels_HW = random.integers(0, 256, (20, 30), dtype=np.uint8)
    drawn = encode_overlay_png(labels_HW, pixels_HW3)
    assert drawn == encode_overlay_png(labels_HW.astype(np.uint16), pixels_HW3)
    drawn_HW3 = np.asarray(Image.open(io.BytesIO(drawn))).astype(float)
    colours = np.asarray(palette()).astype(float)[labels_HW]
    mixed = np.where(labels_HW[..., None] == 0, pixels_HW3, 0.45 * pixels_HW3 + 0.55 * colours)
    assert np.abs(drawn_HW3 - mixed).max() <= 1


def test_a_label_that_a_palette_cannot_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="255"):
        encode_mask_png(np.array([[256]], np.uint16))


def test_colours_are_distinct_and_the_first_far_apart() -> None:
    colours = palette().astype(int)
    assert len({tuple(c) for c in colours.tolist()}) == 256
    assert colours[0].tolist() == [0, 0, 0]
    differences = np.abs(colours[:13, None] - colours[None, :13]).sum(axis=-1)
    assert differences[~np.eye(13, dtype=bool)].min() > 90


def test_a_class_has_the_colour_that_its_png_shows() -> None:
    image = Image.open(io.BytesIO(encode_mask_png(np.array([[3]], np.uint16)))).convert("RGB")
    assert class_color(3) == "#{:02x}{:02x}{:02x}".format(*image.getpixel((0, 0)))  # type: ignore[misc]
    assert class_color(256) == class_color(1)


def test_the_overlay_keeps_background_and_tints_the_rest() -> None:
    pixels_HW3 = np.full((2, 2, 3), 100, np.uint8)
    labels_HW = np.array([[0, 1], [300, 0]], np.uint16)
    drawn_HW3 = np.asarray(Image.open(io.BytesIO(encode_overlay_png(labels_HW, pixels_HW3))))
    assert drawn_HW3[0, 0].tolist() == drawn_HW3[1, 1].tolist() == [100, 100, 100]
    assert drawn_HW3[0, 1].tolist() != [100, 100, 100]
    assert drawn_HW3[1, 0].tolist() != [100, 100, 100]


def test_an_overlay_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        encode_overlay_png(np.zeros((2, 3), np.uint16), np.zeros((3, 2, 3), np.uint8))


@pytest.mark.parametrize("dtype", [">u2", "<u2", ">f4"])
def test_npy_is_little_endian_and_equal(dtype: str) -> None:
    array = np.arange(12).reshape(3, 4).T.astype(dtype)
    data = encode_npy(array)
    assert b"'<" in data[:80]
    np.testing.assert_array_equal(np.load(io.BytesIO(data)), array)
