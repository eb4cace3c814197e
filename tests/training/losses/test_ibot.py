"""iBOT and iBOT++: what is supervised, what is averaged, who learns."""

from typing import get_args

import pytest
import torch
from torch import Tensor

from training.losses.distillation import distillation_loss
from training.losses.ibot import Supervised, ibot_loss, loss_by_visibility

MASKED_BN = torch.tensor([[True, False, True], [False, True, True]])


def random_pair() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits_BNK = torch.randn(2, 3, 5, generator=generator)
    return logits_BNK, torch.randn(2, 3, 5, generator=generator).softmax(-1)


def test_equals_a_float64_reference() -> None:
    logits_BNK, teacher_BNK = random_pair()
    loss_BN = -(teacher_BNK.double() * logits_BNK.double().log_softmax(-1)).sum(-1)
    both = ibot_loss(logits_BNK, teacher_BNK, MASKED_BN, "all")
    masked = ibot_loss(logits_BNK, teacher_BNK, MASKED_BN, "masked")
    assert both.item() == pytest.approx(loss_BN.mean().item(), rel=1e-5)
    assert masked.item() == pytest.approx(loss_BN[MASKED_BN].mean().item(), rel=1e-5)


def test_they_agree_where_everything_is_masked() -> None:
    logits_BNK, teacher_BNK = random_pair()
    everything_BN = torch.ones_like(MASKED_BN)
    both = ibot_loss(logits_BNK, teacher_BNK, everything_BN, "all")
    assert ibot_loss(logits_BNK, teacher_BNK, everything_BN, "masked") == both
    assert distillation_loss(logits_BNK, teacher_BNK) == both


@pytest.mark.parametrize("supervised", get_args(Supervised))
def test_visible_patches_learn_under_ibot_plus_plus_only(supervised: Supervised) -> None:
    logits_BNK, teacher_BNK = random_pair()
    logits_BNK.requires_grad_()
    teacher_BNK.requires_grad_()
    ibot_loss(logits_BNK, teacher_BNK, MASKED_BN, supervised).backward()
    assert teacher_BNK.grad is None
    assert logits_BNK.grad is not None
    learns_BN = logits_BNK.grad.abs().sum(-1) > 0
    assert torch.equal(learns_BN, MASKED_BN if supervised == "masked" else torch.ones(2, 3) > 0)


@pytest.mark.parametrize("supervised", get_args(Supervised))
def test_the_sum_counts_each_token_and_the_mean_each_share(supervised: Supervised) -> None:
    # As literal sums iBOT++ has 3 terms an image and iBOT 2, so its weight would mean more.
    logits_BNK, teacher_BNK = random_pair()
    mean = ibot_loss(logits_BNK, teacher_BNK, MASKED_BN, supervised)
    total = ibot_loss(logits_BNK, teacher_BNK, MASKED_BN, supervised, normalization="sum")
    num_tokens = 3 if supervised == "all" else 2
    assert total.item() == pytest.approx(num_tokens * mean.item(), rel=1e-6)


def test_sizes_must_fit() -> None:
    logits_BNK, teacher_BNK = random_pair()
    with pytest.raises(ValueError, match="same patches and prototypes"):
        ibot_loss(logits_BNK[:1], teacher_BNK, MASKED_BN, "all")
    with pytest.raises(ValueError, match="one value per patch"):
        ibot_loss(logits_BNK, teacher_BNK, MASKED_BN[:, :2], "masked")


def test_the_logged_parts_are_the_losses_of_either_kind_of_patch() -> None:
    logits_BNK, teacher_BNK = random_pair()
    logits_BNK.requires_grad_(True)
    parts = loss_by_visibility(logits_BNK, teacher_BNK, MASKED_BN)
    masked = ibot_loss(logits_BNK, teacher_BNK, MASKED_BN, "masked")
    visible = ibot_loss(logits_BNK, teacher_BNK, ~MASKED_BN, "masked")
    assert parts["patch_masked"].item() == pytest.approx(masked.item(), rel=1e-6)
    assert parts["patch_visible"].item() == pytest.approx(visible.item(), rel=1e-6)
    assert not any(part.requires_grad for part in parts.values())
    nothing_BN = torch.zeros_like(MASKED_BN)
    assert set(loss_by_visibility(logits_BNK, teacher_BNK, nothing_BN)) == {"patch_visible"}
