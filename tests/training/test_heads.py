"""The head gives cosines; the contrast's scale is bounded."""

import pytest
import torch
from torch.nn import functional as F

from training.heads import NameContrast, PrototypeHead


def test_the_head_gives_cosines_of_any_leading_shape() -> None:
    torch.manual_seed(0)
    head = PrototypeHead(6, hidden=8, bottleneck=4, num_prototypes=10)
    tokens_BND = torch.randn(2, 3, 6)
    with torch.no_grad():
        head.prototypes[7] = head.mlp(tokens_BND[1, 2])
    cosines_BNK = head(tokens_BND)
    assert cosines_BNK.shape == (2, 3, 10)
    assert cosines_BNK.abs().max() <= 1 + 1e-6
    assert cosines_BNK[1, 2, 7].item() == pytest.approx(1.0, abs=1e-6)
    torch.testing.assert_close(head(tokens_BND[1, 2]), cosines_BNK[1, 2])


def test_autocast_rounds_the_layers_but_not_the_cosines() -> None:
    torch.manual_seed(0)
    head = PrototypeHead(6, hidden=8, bottleneck=4, num_prototypes=10)
    tokens_ND = torch.randn(5, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cosines_NK, bottleneck_ND = head(tokens_ND), head.mlp(tokens_ND)
    assert bottleneck_ND.dtype == torch.bfloat16
    unit_ND = F.normalize(bottleneck_ND.float(), dim=-1)
    assert cosines_NK.dtype == torch.float32
    assert torch.equal(cosines_NK, unit_ND @ F.normalize(head.prototypes, dim=-1).T)


def test_the_scale_starts_at_its_setting_and_is_bounded() -> None:
    contrast = NameContrast(initial_scale=12.0)
    assert contrast.scale().item() == pytest.approx(12.0, rel=1e-6)
    with torch.no_grad():
        contrast.log_scale.fill_(9.0)
    assert contrast.scale().item() == 60.0
