"""Losses of depth and normals against hand-computed values."""

import math

import pytest
import torch

from training.losses.dense import (
    SCALE_WEIGHT,
    angular_loss,
    depth_gradient_loss,
    scale_invariant_log_loss,
)

TRUTH = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(0)) + 1


def test_the_variance_of_the_logarithm_counts_and_a_part_of_a_common_factor() -> None:
    loss = scale_invariant_log_loss(TRUTH * 2, TRUTH)
    assert loss.item() == pytest.approx(math.sqrt(SCALE_WEIGHT) * math.log(2), rel=1e-3)
    loss = scale_invariant_log_loss(torch.tensor([[[1.0, 2.0]]]), torch.ones(1, 1, 2))
    variance, mean = math.log(2) ** 2 / 2, math.log(2) / 2
    assert loss.item() == pytest.approx(math.sqrt(variance + SCALE_WEIGHT * mean**2), rel=1e-4)


def test_pixels_without_depth_do_not_count_and_an_exact_depth_has_a_finite_gradient() -> None:
    truth, depth = TRUTH.clone(), TRUTH.clone()
    truth[0, 0], depth[0, 0] = 0, 7
    depth.requires_grad_()
    variance, slopes = scale_invariant_log_loss(depth, truth), depth_gradient_loss(depth, truth)
    assert variance.item() < 1e-3
    assert slopes.item() == pytest.approx(0, abs=1e-6)
    (variance + slopes).backward()
    assert depth.grad is not None
    assert torch.isfinite(depth.grad).all()


def vectors(*degrees: float) -> torch.Tensor:
    """Vectors [1, 3, 1, N] at these angles to (0, 0, 1)."""
    angles = torch.deg2rad(torch.tensor(degrees))
    return torch.stack((angles.sin(), torch.zeros_like(angles), angles.cos()))[None, :, None]


def test_normals_cost_the_mean_angle_of_vectors_of_any_length() -> None:
    loss = angular_loss(vectors(30, 90, 120) * 5, vectors(0, 0, 0))
    assert loss.item() == pytest.approx(math.radians(80), rel=1e-5)
    truth = vectors(0, 0)
    truth[..., 1] = 0  # no normal
    assert angular_loss(vectors(30, 90), truth).item() == pytest.approx(math.radians(30), rel=1e-5)
    found = vectors(0, 180, 45).requires_grad_()
    angular_loss(found, vectors(0, 0, 0)).backward()
    assert found.grad is not None
    assert torch.isfinite(found.grad).all()
    assert found.grad[..., 2].abs().sum() > 0
