"""The head gives cosines; the contrast's scale is bounded; averages are exact and move alone."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from training.ema import averaged_copy, update_ema
from training.heads import PrototypeHead


def test_the_head_gives_cosines_that_autocast_does_not_round() -> None:
    torch.manual_seed(0)
    head = PrototypeHead(6, hidden=8, bottleneck=4, num_prototypes=10)
    tokens_BND = torch.randn(2, 3, 6)
    with torch.no_grad():
        head.prototypes[7] = head.mlp(tokens_BND[1, 2])
    cosines_BNK = head(tokens_BND)
    assert cosines_BNK.abs().max() <= 1 + 1e-6
    assert cosines_BNK[1, 2, 7].item() == pytest.approx(1.0, abs=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cosines_BNK, bottleneck_BND = head(tokens_BND), head.mlp(tokens_BND)
    assert bottleneck_BND.dtype == torch.bfloat16
    unit_BND = F.normalize(bottleneck_BND.float(), dim=-1)
    torch.testing.assert_close(cosines_BNK, unit_BND @ F.normalize(head.prototypes, dim=-1).T)


@pytest.mark.parametrize("momentum", [0.0, 0.99, 1.0])
def test_the_average_is_the_weighted_mean(momentum: float) -> None:
    current = nn.Linear(3, 2)
    average = averaged_copy(nn.Linear(3, 2))
    expected = [
        momentum * a.double() + (1 - momentum) * c.detach().double()
        for a, c in zip(average.parameters(), current.parameters(), strict=True)
    ]
    kept = [parameter.detach().clone() for parameter in current.parameters()]
    update_ema(average, current, momentum)
    for found, value in zip(average.parameters(), expected, strict=True):
        torch.testing.assert_close(found.double(), value, rtol=1e-6, atol=1e-7)
        assert not found.requires_grad
    assert all(torch.equal(p, k) for p, k in zip(current.parameters(), kept, strict=True))
