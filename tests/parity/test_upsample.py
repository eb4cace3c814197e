"""Upsampled maps against torch's bilinear interpolation."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from model.segmentation import upsample_bilinear


@pytest.mark.parametrize("grid_hw", [(1, 1), (8, 8), (5, 11), (32, 43)])
@pytest.mark.parametrize("size_hw", [(8, 8), (112, 154), (97, 61), (480, 640), (3, 2)])
def test_equal_to_interpolate(grid_hw: tuple[int, int], size_hw: tuple[int, int]) -> None:
    maps_KHW = np.random.default_rng(0).standard_normal((3, *grid_hw), dtype=np.float32)
    expected = F.interpolate(
        torch.from_numpy(maps_KHW)[None], size=size_hw, mode="bilinear", align_corners=False
    )[0]
    # torch computes the weights in float32, which moves them by some 1e-5 on large images.
    np.testing.assert_allclose(upsample_bilinear(maps_KHW, size_hw), expected.numpy(), atol=1e-4)
