"""The position grid as two matrix products against torch's antialiased bilinear filter."""

import pytest
import torch
from torch.nn import functional as F

from model.position import resize_grid


@pytest.mark.parametrize("side", [4, 32])
@pytest.mark.parametrize(
    "grid_hw", [(8, 8), (7, 7), (1, 1), (5, 9), (9, 5), (33, 47), (32, 100), (98, 98)]
)
def test_equal_to_interpolate(side: int, grid_hw: tuple[int, int]) -> None:
    grid_ND = torch.randn(side * side, 16, generator=torch.Generator().manual_seed(side))
    square_1DHW = grid_ND.reshape(1, side, side, 16).permute(0, 3, 1, 2)
    expected_1DHW = F.interpolate(
        square_1DHW, size=grid_hw, mode="bilinear", align_corners=False, antialias=True
    )
    expected_ND = expected_1DHW[0].flatten(1).T
    torch.testing.assert_close(resize_grid(grid_ND, grid_hw), expected_ND, rtol=0, atol=2e-6)
