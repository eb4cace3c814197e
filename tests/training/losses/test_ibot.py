"""iBOT and iBOT++: the supervised patches, the mean or sum over them, the gradients."""

from typing import get_args

import pytest
import torch
from torch import Tensor

from training.losses.distillation import token_losses
from training.losses.ibot import Supervised, ibot_loss, loss_by_visibility

MASKED_BN = torch.tensor([[True, False, True], [False, True, True]])


def random_pair() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits_BNK = torch.randn(2, 3, 5, generator=generator)
    return logits_BNK, torch.randn(2, 3, 5, generator=generator).softmax(-1)


def test_equals_a_float64_reference() -> None:
    logits_BNK, teacher_BNK = random_pair()
    loss_BN = -(teacher_BNK.double() * logits_BNK.double().log_softmax(-1)).sum(-1)
    both = ibot_loss(token_losses(logits_BNK, teacher_BNK), MASKED_BN, "all")
    masked = ibot_loss(token_losses(logits_BNK, teacher_BNK), MASKED_BN, "masked")
    assert both.item() == pytest.approx(loss_BN.mean().item(), rel=1e-5)
    assert masked.item() == pytest.approx(loss_BN[MASKED_BN].mean().item(), rel=1e-5)


@pytest.mark.parametrize("supervised", get_args(Supervised))
def test_visible_patches_have_a_gradient_only_with_ibot_plus_plus(supervised: Supervised) -> None:
    logits_BNK, teacher_BNK = random_pair()
    logits_BNK.requires_grad_()
    teacher_BNK.requires_grad_()
    ibot_loss(token_losses(logits_BNK, teacher_BNK), MASKED_BN, supervised).backward()
    assert teacher_BNK.grad is None
    assert logits_BNK.grad is not None
    has_gradient_BN = logits_BNK.grad.abs().sum(-1) > 0
    assert torch.equal(
        has_gradient_BN, MASKED_BN if supervised == "masked" else torch.ones(2, 3) > 0
    )


@pytest.mark.parametrize("supervised", get_args(Supervised))
def test_the_sum_is_over_the_supervised_tokens_of_an_image(supervised: Supervised) -> None:
    # As literal sums iBOT++ has 3 terms an image and iBOT 2, so its weight would mean more.
    logits_BNK, teacher_BNK = random_pair()
    mean = ibot_loss(token_losses(logits_BNK, teacher_BNK), MASKED_BN, supervised)
    total = ibot_loss(
        token_losses(logits_BNK, teacher_BNK), MASKED_BN, supervised, normalization="sum"
    )
    num_tokens = 3 if supervised == "all" else 2
    assert total.item() == pytest.approx(num_tokens * mean.item(), rel=1e-6)


def test_sizes_must_fit() -> None:
    logits_BNK, teacher_BNK = random_pair()
    with pytest.raises(ValueError, match="same patches and prototypes"):
        token_losses(logits_BNK, teacher_BNK[..., :4])
    with pytest.raises(ValueError, match="one value per patch"):
        ibot_loss(token_losses(logits_BNK, teacher_BNK), MASKED_BN[:, :2], "masked")


def test_the_logged_parts_are_the_losses_of_masked_and_visible_patches() -> None:
    logits_BNK, teacher_BNK = random_pair()
    logits_BNK.requires_grad_(True)
    parts = loss_by_visibility(token_losses(logits_BNK, teacher_BNK), MASKED_BN)
    masked = ibot_loss(token_losses(logits_BNK, teacher_BNK), MASKED_BN, "masked")
    visible = ibot_loss(token_losses(logits_BNK, teacher_BNK), ~MASKED_BN, "masked")
    assert parts["patch_masked"].item() == pytest.approx(masked.item(), rel=1e-6)
    assert parts["patch_visible"].item() == pytest.approx(visible.item(), rel=1e-6)
    assert not any(part.requires_grad for part in parts.values())
    nothing_BN = torch.zeros_like(MASKED_BN)
    assert set(loss_by_visibility(token_losses(logits_BNK, teacher_BNK), nothing_BN)) == {
        "patch_visible"
    }
