"""Losses of depth against hand-computed values."""

import math

import pytest
import torch

from training.losses.depth import (
    NUM_GRADIENT_SCALES,
    SCALE_WEIGHT,
    depth_gradient_loss,
    scale_invariant_log_loss,
)

TRUTH = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(0)) + 1


def test_a_common_factor_costs_a_part_of_its_logarithm() -> None:
    loss = scale_invariant_log_loss(TRUTH * 2, TRUTH)
    assert loss.item() == pytest.approx(math.sqrt(SCALE_WEIGHT) * math.log(2), rel=1e-3)
    assert scale_invariant_log_loss(TRUTH, TRUTH).item() < 1e-3


def test_the_variance_of_the_logarithm_counts() -> None:
    depth = torch.tensor([[[1.0, 2.0]]])
    loss = scale_invariant_log_loss(depth, torch.ones(1, 1, 2))
    variance, mean = math.log(2) ** 2 / 2, math.log(2) / 2
    assert loss.item() == pytest.approx(math.sqrt(variance + SCALE_WEIGHT * mean**2), rel=1e-4)


def test_pixels_without_depth_do_not_count() -> None:
    truth = TRUTH.clone()
    truth[0, 0] = 0
    depth = TRUTH.clone()
    depth[0, 0] = 7
    assert scale_invariant_log_loss(depth, truth).item() < 1e-3
    assert depth_gradient_loss(depth, truth).item() == pytest.approx(0, abs=1e-6)


def test_gradients_are_of_the_error_at_every_scale() -> None:
    slope = torch.exp(0.1 * torch.arange(16.0)).expand(1, 16, 16)
    loss = depth_gradient_loss(slope, torch.ones(1, 16, 16))
    steps = sum(0.1 * 2**scale for scale in range(NUM_GRADIENT_SCALES))
    assert loss.item() == pytest.approx(steps, rel=1e-4)
    assert depth_gradient_loss(TRUTH * 3, TRUTH).item() == pytest.approx(0, abs=1e-5)


def test_gradients_reach_the_depth_and_stay_finite() -> None:
    depth = TRUTH.clone().requires_grad_()
    (scale_invariant_log_loss(depth, TRUTH) + depth_gradient_loss(depth, TRUTH)).backward()
    assert depth.grad is not None
    assert torch.isfinite(depth.grad).all()
