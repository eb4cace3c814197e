"""The angular loss against hand-computed angles."""

import math

import pytest
import torch

from training.losses.normals import angular_loss


def vectors(*degrees: float) -> torch.Tensor:
    """Vectors [1, 3, 1, N] at these angles to (0, 0, 1)."""
    angles = torch.deg2rad(torch.tensor(degrees))
    return torch.stack((angles.sin(), torch.zeros_like(angles), angles.cos()))[None, :, None]


def test_it_is_the_mean_angle_of_vectors_of_any_length() -> None:
    loss = angular_loss(vectors(30, 90, 120) * 5, vectors(0, 0, 0))
    assert loss.item() == pytest.approx(math.radians(80), rel=1e-5)


def test_pixels_without_a_normal_do_not_count() -> None:
    truth = vectors(0, 0)
    truth[..., 1] = 0
    assert angular_loss(vectors(30, 90), truth).item() == pytest.approx(math.radians(30), rel=1e-5)


def test_gradients_of_exact_vectors_are_finite() -> None:
    found = vectors(0, 180, 45).requires_grad_()
    angular_loss(found, vectors(0, 0, 0)).backward()
    assert found.grad is not None
    assert torch.isfinite(found.grad).all()
    assert found.grad[..., 2].abs().sum() > 0
