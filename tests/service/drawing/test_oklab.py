"""OKLab there and back."""

import numpy as np

from service.outputs.png import to_linear_rgb, to_oklab, to_srgb


def test_every_colour_comes_back() -> None:
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    rgb_C3 = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(-1, 3)
    np.testing.assert_array_equal(to_srgb(to_linear_rgb(to_oklab(rgb_C3))), rgb_C3)


def test_white_is_light_and_grey_has_no_hue() -> None:
    white, grey, black = to_oklab(np.array([[255] * 3, [120] * 3, [0] * 3], np.uint8))
    np.testing.assert_allclose(white, [1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(grey[1:], 0, atol=1e-6)
    np.testing.assert_allclose(black, 0, atol=1e-6)


def test_what_a_screen_cannot_show_is_cut() -> None:
    assert to_srgb(np.array([[-0.5, 0.0, 2.0]])).tolist() == [[0, 0, 255]]
