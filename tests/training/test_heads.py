"""The head gives cosines."""

import pytest
import torch
from torch.nn import functional as F

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
