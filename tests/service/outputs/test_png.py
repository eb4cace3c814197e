"""PNG files and OKLab colours."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image

from service.outputs.png import ColourType, to_linear_rgb, to_oklab, to_srgb, write_png


def test_oklab_converts_to_lightness_and_hue_and_back_exactly() -> None:
    white, grey, black = to_oklab(np.array([[255] * 3, [120] * 3, [0] * 3], np.uint8))
    np.testing.assert_allclose(white, [1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(grey[1:], 0, atol=1e-6)
    np.testing.assert_allclose(black, 0, atol=1e-6)
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    rgb_C3 = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(-1, 3)
    np.testing.assert_array_equal(to_srgb(to_linear_rgb(to_oklab(rgb_C3))), rgb_C3)
    assert to_srgb(np.array([[-0.5, 0.0, 2.0]])).tolist() == [[0, 0, 255]], "clipped"


@pytest.mark.parametrize("strategy", [zlib.Z_RLE, zlib.Z_DEFAULT_STRATEGY])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("size_hw", [(1, 1), (3, 200), (200, 3)])
def test_grey_samples_of_8_and_16_bits_are_written(
    size_hw: tuple[int, int], dtype: type[np.uint8] | type[np.uint16], strategy: int
) -> None:
    most = np.iinfo(dtype).max
    samples_HW1 = np.random.default_rng(0).integers(0, most, (*size_hw, 1), dtype, endpoint=True)
    png = write_png(size_hw, lambda rows: samples_HW1[rows], ColourType.GREY, strategy=strategy)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png))), samples_HW1[..., 0])


def test_colours_are_written_from_any_memory_layout() -> None:
    samples_HW3 = (
        np.random.default_rng(0).integers(0, 256, (3, 20, 30), np.uint8).transpose(2, 1, 0)
    )
    png = write_png((30, 20), lambda rows: samples_HW3[rows], ColourType.RGB)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png))), samples_HW3)
