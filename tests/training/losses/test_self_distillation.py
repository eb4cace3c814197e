"""Cross-entropy with a teacher's assignments: of patches (iBOT, iBOT++, distillation), of crops."""

import pytest
import torch
from torch import Tensor

from training.losses.distillation import (
    Supervised,
    dino_loss,
    feature_loss,
    ibot_loss,
    token_losses,
)

MASKED_BN = torch.tensor([[True, False, True], [False, True, True]])


def random_pair() -> tuple[Tensor, Tensor]:
    """Logits of two images with three patches and five prototypes, and assignments."""
    generator = torch.Generator().manual_seed(0)
    logits_BNK = torch.randn(2, 3, 5, generator=generator, requires_grad=True)
    return logits_BNK, torch.randn(2, 3, 5, generator=generator).softmax(-1).requires_grad_()


def test_tokens_equal_a_float64_reference_and_are_never_below_the_teachers_entropy() -> None:
    logits_BNK, teacher_BNK = random_pair()
    expected_BN = -(teacher_BNK.double() * logits_BNK.double().log_softmax(-1)).sum(-1)
    entropy_BN = -(teacher_BNK * teacher_BNK.log()).sum(-1)
    loss_BN = token_losses(logits_BNK, teacher_BNK)
    torch.testing.assert_close(loss_BN, expected_BN.float(), rtol=1e-5, atol=1e-6)
    assert (loss_BN > entropy_BN).all()
    torch.testing.assert_close(token_losses(teacher_BNK.log(), teacher_BNK), entropy_BN)


@pytest.mark.parametrize("supervised", ["all", "masked"])
def test_visible_patches_count_only_with_ibot_plus_plus(supervised: Supervised) -> None:
    logits_BNK, teacher_BNK = random_pair()
    loss_BN = token_losses(logits_BNK, teacher_BNK)
    counted_BN = MASKED_BN if supervised == "masked" else torch.ones(2, 3).bool()
    loss = ibot_loss(loss_BN, MASKED_BN, supervised)
    torch.testing.assert_close(loss, loss_BN[counted_BN].mean())
    loss.backward()
    assert teacher_BNK.grad is None
    assert logits_BNK.grad is not None
    # Softmax minus target, at the counted patches.
    share_BN1 = counted_BN[..., None] / counted_BN.sum()
    gradient_BNK = (logits_BNK.softmax(-1) - teacher_BNK) * share_BN1
    torch.testing.assert_close(logits_BNK.grad, gradient_BNK.detach())


def test_crops_equal_a_float64_reference_and_only_the_student_learns() -> None:
    logits_CBK, teacher_CBK = random_pair()
    teacher_BK = teacher_CBK[0].detach().requires_grad_()
    expected = -(teacher_BK.double() * logits_CBK.double().log_softmax(-1)).sum() / 3
    loss = dino_loss(logits_CBK, teacher_BK)
    assert loss.item() == pytest.approx(expected.item() / 2)
    loss.backward()
    assert teacher_BK.grad is None
    expected_CBK = (logits_CBK.softmax(-1) - teacher_BK) / 6
    torch.testing.assert_close(logits_CBK.grad, expected_CBK.detach())


def test_features_by_hand() -> None:
    # Cosines 1, 0 and -1 cost 0, 1 and 2; lengths do not matter.
    student_BND = torch.tensor([[[2.0, 0.0], [0.0, 5.0], [-1.0, 0.0]]], requires_grad=True)
    teacher_BND = torch.tensor([[[9.0, 0.0], [1.0, 0.0], [0.5, 0.0]]], requires_grad=True)
    first_BN = torch.tensor([[True, True, False]])
    assert feature_loss(student_BND, teacher_BND).item() == pytest.approx(1.0, abs=1e-6)
    assert feature_loss(student_BND, teacher_BND, first_BN).item() == pytest.approx(0.5, abs=1e-6)
    total = feature_loss(student_BND, teacher_BND, first_BN)
    total.backward()
    assert teacher_BND.grad is None
    assert student_BND.grad is not None
    assert student_BND.grad[0, 1].any()
    assert not student_BND.grad[0, 2].any()
