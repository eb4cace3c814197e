"""Prepared pictures against transformers' image processor."""

import numpy as np
import pytest
from PIL import Image
from transformers import Tipsv2ImageProcessor

from model.preprocess import prepare_image


@pytest.mark.parametrize("picture_hw", [(480, 640), (1080, 1920), (100, 37), (448, 448), (50, 60)])
@pytest.mark.parametrize("size_hw", [(448, 448), (112, 154)])
def test_within_one_grey_level_of_the_processor(
    picture_hw: tuple[int, int], size_hw: tuple[int, int]
) -> None:
    generator = np.random.default_rng(0)
    coarse_HW3 = generator.integers(0, 256, (9, 11, 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse_HW3).resize(picture_hw[::-1], Image.Resampling.BICUBIC)
    grain_HW3 = generator.integers(0, 16, (*picture_hw, 3), dtype=np.uint8)
    pixels_HW3 = np.asarray(smooth) // 16 * 15 + grain_HW3

    processor = Tipsv2ImageProcessor(size={"height": size_hw[0], "width": size_hw[1]})
    expected = processor(Image.fromarray(pixels_HW3), return_tensors="np")["pixel_values"][0]
    actual = prepare_image(pixels_HW3, size_hw)
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= 1 / 255 + 1e-6
    assert np.abs(actual - expected).mean() < 0.1 / 255
