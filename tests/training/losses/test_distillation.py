"""Distillation of prototypes and of features: all patches, no gradient for the teacher."""

import pytest
import torch

from training.losses.distillation import feature_loss, token_losses
from training.losses.reduction import reduce_tokens


def test_equals_a_float64_reference_and_is_never_below_the_teachers_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    logits_BNK = torch.randn(3, 5, 7, generator=generator)
    teacher_BNK = torch.randn(3, 5, 7, generator=generator).softmax(-1)
    expected = -(teacher_BNK.double() * logits_BNK.double().log_softmax(-1)).sum(-1).mean()
    entropy = -(teacher_BNK * teacher_BNK.log()).sum(-1).mean()
    loss = token_losses(logits_BNK, teacher_BNK).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert loss.item() > entropy.item()
    matched = token_losses(teacher_BNK.log(), teacher_BNK).mean()
    assert matched.item() == pytest.approx(entropy.item(), rel=1e-5)


def test_only_the_student_has_a_gradient() -> None:
    logits_BNK = torch.zeros(2, 3, 4, requires_grad=True)
    teacher_BNK = torch.eye(4)[None, :3].repeat(2, 1, 1).requires_grad_()
    token_losses(logits_BNK, teacher_BNK).mean().backward()
    assert teacher_BNK.grad is None
    assert logits_BNK.grad is not None
    # Softmax minus target, divided by the six patches.
    torch.testing.assert_close(logits_BNK.grad, (0.25 - teacher_BNK.detach()) / 6)
    student_BND = torch.randn(1, 2, 3, requires_grad=True)
    teacher_BND = torch.randn(1, 2, 3, requires_grad=True)
    feature_loss(student_BND, teacher_BND).backward()
    assert teacher_BND.grad is None
    assert student_BND.grad is not None
    assert student_BND.grad.any()


@pytest.mark.parametrize("shape", [(1, 3, 4), (2, 2, 4), (2, 3, 5)])
def test_sizes_must_fit(shape: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="same patches and prototypes"):
        token_losses(torch.zeros(2, 3, 4), torch.zeros(shape))


def test_only_the_supervised_patches_count() -> None:
    generator = torch.Generator().manual_seed(2)
    logits_BNK = torch.randn(2, 3, 7, generator=generator)
    teacher_BNK = torch.randn(2, 3, 7, generator=generator).softmax(-1)
    counted_BN = torch.tensor([[True, False, True], [False, True, True]])
    loss_BN = -(teacher_BNK * logits_BNK.log_softmax(-1)).sum(-1)
    mean = reduce_tokens(token_losses(logits_BNK, teacher_BNK), counted_BN, "mean")
    assert mean.item() == pytest.approx(loss_BN[counted_BN].mean().item(), rel=1e-6)
    total = reduce_tokens(token_losses(logits_BNK, teacher_BNK), counted_BN, "sum")
    assert total.item() == pytest.approx(2 * mean.item(), rel=1e-6)


def test_features_by_hand() -> None:
    # Cosines 1, 0 and -1 cost 0, 1 and 2; lengths do not matter.
    student_BND = torch.tensor([[[2.0, 0.0], [0.0, 5.0], [-1.0, 0.0]]])
    teacher_BND = torch.tensor([[[9.0, 0.0], [1.0, 0.0], [0.5, 0.0]]])
    assert feature_loss(student_BND, teacher_BND).item() == pytest.approx(1.0, abs=1e-6)
    first_BN = torch.tensor([[True, True, False]])
    assert feature_loss(student_BND, teacher_BND, first_BN).item() == pytest.approx(0.5, abs=1e-6)
    total = feature_loss(student_BND, teacher_BND, first_BN, normalization="sum")
    assert total.item() == pytest.approx(1.0, abs=1e-6)
    with pytest.raises(ValueError, match="one width"):
        feature_loss(torch.ones(1, 2, 3), torch.ones(1, 2, 4))
