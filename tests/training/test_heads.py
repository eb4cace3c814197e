"""The head gives cosines; the contrast's scale is bounded."""

from dataclasses import replace

import pytest
import torch

from training.heads import HeadConfig, NameContrast, PrototypeHead


def make_head() -> PrototypeHead:
    torch.manual_seed(0)
    return PrototypeHead(6, hidden=8, bottleneck=4, num_prototypes=10)


def test_the_head_gives_cosines_of_any_leading_shape() -> None:
    head, tokens_BND = make_head(), torch.randn(2, 3, 6)
    cosines_BNK = head(tokens_BND)
    assert cosines_BNK.shape == (2, 3, 10)
    assert cosines_BNK.abs().max() <= 1 + 1e-6
    torch.testing.assert_close(head(tokens_BND[1, 2]), cosines_BNK[1, 2])
    head, token_D = make_head(), torch.randn(6)
    with torch.no_grad():
        head.prototypes[7] = head.mlp(token_D)
    assert head(token_D)[7].item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"layers": 0}, "layers"),
        ({"teacher_temperature": 0.0}, "temperatures"),
        ({"ema_momentum": 1.5}, "ema_momentum"),
    ],
)
def test_a_head_that_cannot_work_is_refused(setting: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(HeadConfig(), **setting)  # type: ignore[arg-type]


def test_the_scale_starts_at_its_setting_and_is_bounded() -> None:
    contrast = NameContrast(initial_scale=12.0)
    assert contrast.scale().item() == pytest.approx(12.0, rel=1e-6)
    with torch.no_grad():
        contrast.log_scale.fill_(9.0)
    assert contrast.scale().item() == 60.0
