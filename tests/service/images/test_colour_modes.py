"""Images of every colour mode become opaque RGB or L, with the colours that were meant."""

import numpy as np
import pytest
from PIL import Image

from service.images.codec import flatten

ORANGE = (230, 120, 40)
SIZE = (9, 5)


def orange(mode: str) -> Image.Image:
    """An orange image, through whichever modes lead there."""
    image = Image.new("RGB", SIZE, ORANGE)
    steps = {"P": [], "PA": [], "La": ["LA", "La"], "RGBa": ["RGBA", "RGBa"]}.get(mode, [mode])
    for step in steps:
        image = image.convert(step)
    if mode in {"P", "PA"}:
        image = image.quantize(4)
    if mode == "PA":
        image.putalpha(255)
    assert image.mode == mode
    return image


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "P", "PA"])
def test_modes_of_colour_keep_it(mode: str) -> None:
    flat = flatten(orange(mode))
    assert flat.mode == "RGB"
    assert np.abs(np.asarray(flat).astype(int) - ORANGE).max() <= 5


@pytest.mark.parametrize("mode", ["L", "LA", "La"])
def test_modes_of_grey_keep_it(mode: str) -> None:
    flat = np.asarray(flatten(orange(mode)).convert("RGB")).astype(int)
    assert np.abs(flat - np.asarray(orange("L"))[0, 0]).max() <= 2


def test_black_and_white_stay_so() -> None:
    flat = flatten(Image.fromarray(np.eye(8, dtype=np.bool_)))
    assert flat.mode == "L"
    np.testing.assert_array_equal(np.asarray(flat), 255 * np.eye(8))


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
def test_sixteen_bits_keep_their_upper_eight(dtype: str) -> None:
    samples = np.array([[0, 255, 256, 0x7FFF, 0xFFFF]], np.uint16)
    image = Image.frombytes(
        "I;16" if dtype == "<u2" else "I;16B", (5, 1), samples.astype(dtype).tobytes()
    )
    assert np.asarray(flatten(image)).tolist() == [[0, 0, 1, 127, 255]]


def test_lab_is_understood() -> None:
    # Pillow holds lightness from 0 to 255, and green to red, blue to yellow around 128.
    grey = Image.merge("LAB", [Image.new("L", SIZE, value) for value in (137, 128, 128)])
    red = Image.merge("LAB", [Image.new("L", SIZE, value) for value in (138, 209, 198)])
    assert np.abs(np.asarray(flatten(grey)).astype(int) - 128).max() <= 3
    assert np.abs(np.asarray(flatten(red)).astype(int) - (254, 0, 0)).max() <= 8


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa", "La"])
def test_what_is_transparent_becomes_white_and_half_of_it_pale(mode: str) -> None:
    colour = Image.new("RGBA", (3, 1), (0, 0, 0, 255))
    colour.putpixel((1, 0), (0, 0, 0, 128))
    colour.putpixel((2, 0), (0, 0, 0, 0))
    if mode in {"LA", "La"}:
        image = colour.convert("LA") if mode == "LA" else colour.convert("LA").convert("La")
    elif mode == "PA":
        image = Image.new("PA", (3, 1))
        image.putpalette([0, 0, 0])
        image.putalpha(colour.getchannel("A"))
    else:
        image = colour.convert(mode)
    flat = np.asarray(flatten(image).convert("RGB"))
    assert flat[0, 0].tolist() == [0, 0, 0]
    assert np.abs(flat[0, 1].astype(int) - 127).max() <= 1
    assert flat[0, 2].tolist() == [255, 255, 255]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 257 * 100, 65535, 10**9, -5]], np.int32), [0, 100, 255, 255, 0]),
        (np.array([[0.0, 0.5, 1.0, np.nan, -1]], np.float32), [0, 127, 255, 0, 0]),
        (np.array([[0.0, 100.0, 255.0, np.inf, 300.0]], np.float32), [0, 100, 255, 255, 255]),
    ],
)
def test_wide_samples_are_brought_to_eight_bits(
    values: "np.typing.NDArray[np.generic]", expected: list[int]
) -> None:
    assert np.asarray(flatten(Image.fromarray(values))).tolist() == [expected]
