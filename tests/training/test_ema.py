"""The moving average is an exact lerp, and only the average moves."""

import pytest
import torch
from torch import nn

from training.ema import update_ema


@pytest.mark.parametrize("momentum", [0.0, 0.99, 1.0])
def test_the_average_is_the_weighted_mean(momentum: float) -> None:
    torch.manual_seed(0)
    average, current = nn.Linear(3, 2).requires_grad_(requires_grad=False), nn.Linear(3, 2)
    expected = [
        momentum * a.double() + (1 - momentum) * c.detach().double()
        for a, c in zip(average.parameters(), current.parameters(), strict=True)
    ]
    kept = [parameter.detach().clone() for parameter in current.parameters()]
    update_ema(average, current, momentum)
    for parameter, value in zip(average.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.double(), value, rtol=1e-6, atol=1e-7)
        assert parameter.grad_fn is None
        assert not parameter.requires_grad
    for parameter, value in zip(current.parameters(), kept, strict=True):
        assert torch.equal(parameter, value)


def test_modules_must_match() -> None:
    with pytest.raises(ValueError, match="zip"):
        update_ema(nn.Linear(3, 2, bias=False), nn.Linear(3, 2), 0.9)
