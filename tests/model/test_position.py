"""Resized position grids: shares of a filter, free in both sides."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Tipsv2Model

from model.position import antialias_matrix, embed_pixels, resize_grid


@given(st.integers(1, 40), st.integers(1, 100))
@settings(deadline=None)
def test_every_output_is_a_weighted_mean(size_in: int, size_out: int) -> None:
    weights = antialias_matrix(size_in, size_out)
    assert weights.shape == (size_out, size_in)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(size_out))


def test_the_native_grid_and_the_dtype_stay() -> None:
    grid_ND = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(resize_grid(grid_ND, (4, 4)), grid_ND, rtol=0, atol=0)
    assert resize_grid(grid_ND.bfloat16(), (3, 5)).dtype == torch.bfloat16


@pytest.mark.parametrize("size_hw", [(56, 56), (28, 70), (70, 28), (14, 14), (112, 98)])
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
