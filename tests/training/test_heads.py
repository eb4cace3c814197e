"""The head gives cosines; centering balances and sharpens; the contrast's scale is bounded."""

import math

import pytest
import torch

from training.heads import Centering, NameContrast, PrototypeHead


def make_head() -> PrototypeHead:
    torch.manual_seed(0)
    return PrototypeHead(6, hidden=8, bottleneck=4, num_prototypes=10)


def test_the_head_gives_cosines_of_any_leading_shape() -> None:
    head, tokens_BND = make_head(), torch.randn(2, 3, 6)
    cosines_BNK = head(tokens_BND)
    assert cosines_BNK.shape == (2, 3, 10)
    assert cosines_BNK.abs().max() <= 1 + 1e-6
    torch.testing.assert_close(head(tokens_BND[1, 2]), cosines_BNK[1, 2])


def test_the_length_of_a_prototype_does_not_matter() -> None:
    head, tokens_ND = make_head(), torch.randn(3, 6)
    before_NK = head(tokens_ND)
    with torch.no_grad():
        head.prototypes.mul_(5.0)
    torch.testing.assert_close(head(tokens_ND), before_NK)


def test_a_prototype_on_a_tokens_bottleneck_has_cosine_one() -> None:
    head, token_D = make_head(), torch.randn(6)
    with torch.no_grad():
        head.prototypes[7] = head.mlp(token_D)
    assert head(token_D)[7].item() == pytest.approx(1.0, abs=1e-6)


def test_assignments_are_the_sharpened_softmax_of_centred_cosines() -> None:
    centering = Centering(3, temperature=0.5, momentum=0.9)
    centering.centre_K.copy_(torch.tensor([0.2, 0.0, -0.1]))
    probs_K = centering(torch.tensor([[0.7, 0.0, -0.1]]))
    expected_K = [math.exp(value / 0.5) for value in (0.5, 0.0, 0.0)]
    total = sum(expected_K)
    assert probs_K[0].tolist() == pytest.approx([value / total for value in expected_K], rel=1e-5)


def test_the_centre_is_the_moving_mean_over_all_patches() -> None:
    centering = Centering(2, temperature=0.1, momentum=0.9)
    cosines_BNK = torch.tensor([[[1.0, 0.0], [0.0, 0.0]], [[0.0, 1.0], [0.0, -0.2]]])
    centering(cosines_BNK)
    assert centering.centre_K.tolist() == pytest.approx([0.1 * 0.25, 0.1 * 0.2])
    centering(cosines_BNK)
    assert centering.centre_K.tolist() == pytest.approx([0.19 * 0.25, 0.19 * 0.2])


def test_the_centre_rests_in_evaluation() -> None:
    centering = Centering(4, temperature=0.1).eval()
    centering(torch.rand(5, 4))
    assert not centering.centre_K.any()


def test_the_centre_is_saved_and_never_learns() -> None:
    centering = Centering(4, temperature=0.1)
    assert set(centering.state_dict()) == {"centre_K"}
    assert not list(centering.parameters())
    assert not centering(torch.rand(5, 4, requires_grad=True)).requires_grad


def test_centering_keeps_one_prototype_from_taking_everything() -> None:
    generator = torch.Generator().manual_seed(0)
    cosines_NK = 0.05 * torch.randn(64, 4, generator=generator) + torch.tensor([0.5, 0, 0, 0])
    centering = Centering(4, temperature=0.06, momentum=0.5)
    first_K = centering(cosines_NK).mean(0)
    for _ in range(20):
        last_K = centering(cosines_NK).mean(0)
    assert first_K[0] > 0.95
    assert last_K.max() < 0.4


def test_the_scale_starts_where_told_and_is_bounded() -> None:
    contrast = NameContrast(initial_scale=12.0)
    assert contrast.scale().item() == pytest.approx(12.0, rel=1e-6)
    with torch.no_grad():
        contrast.log_scale.fill_(9.0)
    assert contrast.scale().item() == 60.0
