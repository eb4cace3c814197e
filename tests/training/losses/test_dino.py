"""DINO: each local crop predicts the teacher's assignment of the whole image."""

import pytest
import torch
from torch import Tensor

from training.losses.dino import dino_loss


def random_pair() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits_CBK = torch.randn(6, 3, 5, generator=generator)
    return logits_CBK, torch.randn(3, 5, generator=generator).softmax(-1)


def test_equals_a_float64_reference() -> None:
    logits_CBK, teacher_BK = random_pair()
    expected = 0.0
    for crop_BK in logits_CBK.double():
        expected -= (teacher_BK.double() * crop_BK.log_softmax(-1)).sum().item() / 3
    assert dino_loss(logits_CBK, teacher_BK, "sum").item() == pytest.approx(expected, rel=1e-5)
    assert dino_loss(logits_CBK, teacher_BK).item() == pytest.approx(expected / 6, rel=1e-5)


def test_only_the_student_has_a_gradient() -> None:
    logits_CBK, teacher_BK = (part.requires_grad_() for part in random_pair())
    dino_loss(logits_CBK, teacher_BK).backward()
    assert teacher_BK.grad is None
    # The gradient of a cross-entropy is the student's assignment less the teacher's.
    expected_CBK = (logits_CBK.softmax(-1) - teacher_BK) / 18
    torch.testing.assert_close(logits_CBK.grad, expected_CBK.detach())


def test_sizes_must_fit() -> None:
    logits_CBK, teacher_BK = random_pair()
    for wrong_CBK in (logits_CBK[:0], logits_CBK[:, :2], logits_CBK[..., :4]):
        with pytest.raises(ValueError, match="needs a crop or more"):
            dino_loss(wrong_CBK, teacher_BK)
