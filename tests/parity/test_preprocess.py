"""Prepared images against transformers' image processor and the reference's own transform.

The reference resizes with Pillow and so do we. transformers' processor resizes with torchvision,
whose integer arithmetic rounds some pixels to the neighbouring grey level.
"""

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from torchvision import transforms
from transformers import Tipsv2ImageProcessor

from model.preprocess import prepare_image

IMAGES_HW = [(480, 640), (1080, 1920), (100, 37), (448, 448)]
SIZES_HW = [(448, 448), (112, 154)]


def image(image_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """A smooth image with grain, like a photograph."""
    generator = np.random.default_rng(0)
    coarse_HW3 = generator.integers(0, 256, (9, 11, 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse_HW3).resize(image_hw[::-1], Image.Resampling.BICUBIC)
    grain_HW3 = generator.integers(0, 16, (*image_hw, 3), dtype=np.uint8)
    pixels_HW3: NDArray[np.uint8] = np.asarray(smooth) // 16 * 15 + grain_HW3
    return pixels_HW3


@pytest.mark.parametrize("image_hw", IMAGES_HW)
@pytest.mark.parametrize("size_hw", SIZES_HW)
def test_equal_to_the_references_transform(
    image_hw: tuple[int, int], size_hw: tuple[int, int]
) -> None:
    """google-deepmind/tips: Resize of a Pillow image and ToTensor, nothing else."""
    pixels_HW3 = image(image_hw)
    transform = transforms.Compose([transforms.Resize(size_hw), transforms.ToTensor()])
    expected_3HW = transform(Image.fromarray(pixels_HW3)).numpy()
    actual_3HW = prepare_image(pixels_HW3, size_hw)
    assert actual_3HW.dtype == np.float32
    assert actual_3HW.shape == expected_3HW.shape
    assert np.abs(actual_3HW - expected_3HW).max() < 1e-6


@pytest.mark.parametrize("image_hw", IMAGES_HW)
@pytest.mark.parametrize("size_hw", SIZES_HW)
def test_within_one_grey_level_of_the_processor(
    image_hw: tuple[int, int], size_hw: tuple[int, int]
) -> None:
    pixels_HW3 = image(image_hw)
    processor = Tipsv2ImageProcessor(size={"height": size_hw[0], "width": size_hw[1]})
    expected = processor(Image.fromarray(pixels_HW3), return_tensors="np")["pixel_values"][0]
    actual = prepare_image(pixels_HW3, size_hw)
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= 1 / 255 + 1e-6
    assert np.abs(actual - expected).mean() < 0.1 / 255
