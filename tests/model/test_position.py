"""Resized position grids: shares of a filter, free in both sides."""

import pytest
import torch
from transformers import Tipsv2Model

from model.position import embed_pixels


@pytest.mark.parametrize("size_hw", [(56, 56), (28, 70), (70, 28), (14, 14), (112, 98), (462, 658)])
def test_tokens_are_those_of_transformers(
    tiny_model: Tipsv2Model, size_hw: tuple[int, int]
) -> None:
    embeddings = tiny_model.vision_model.embeddings
    generator = torch.Generator().manual_seed(0)
    pixels_B3HW = torch.rand(2, 3, *size_hw, generator=generator)
    num_patches = size_hw[0] * size_hw[1] // 14**2
    masked_BN = torch.rand(2, num_patches, generator=generator) < 0.5
    with torch.no_grad():
        for mask in (None, masked_BN):
            expected = embeddings(pixels_B3HW, bool_masked_pos=mask)
            actual = embed_pixels(embeddings, pixels_B3HW, mask)
            torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)
