"""DINO: each local crop predicts what the teacher says of the whole image."""

import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from training.losses.dino import dino_loss
from training.losses.reduction import Normalization


def random_pair() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits_CBK = torch.randn(6, 3, 5, generator=generator)
    return logits_CBK, torch.randn(3, 5, generator=generator).softmax(-1)


def test_by_hand() -> None:
    # Two crops of one image, whose teacher is sure of the first prototype.
    logits_CBK = torch.log(torch.tensor([[[0.5, 0.5]], [[0.25, 0.75]]]))
    teacher_BK = torch.tensor([[1.0, 0.0]])
    mean = dino_loss(logits_CBK, teacher_BK)
    assert mean.shape == ()
    assert mean.item() == pytest.approx((math.log(2) + math.log(4)) / 2, rel=1e-6)
    total = dino_loss(logits_CBK, teacher_BK, "sum")
    assert total.item() == pytest.approx(math.log(2) + math.log(4), rel=1e-6)


def test_equals_a_float64_reference() -> None:
    logits_CBK, teacher_BK = random_pair()
    expected = 0.0
    for crop_BK in logits_CBK.double():
        expected -= (teacher_BK.double() * crop_BK.log_softmax(-1)).sum().item() / 3
    assert dino_loss(logits_CBK, teacher_BK, "sum").item() == pytest.approx(expected, rel=1e-5)
    assert dino_loss(logits_CBK, teacher_BK).item() == pytest.approx(expected / 6, rel=1e-5)


@pytest.mark.parametrize("normalization", get_args(Normalization))
def test_a_student_that_agrees_pays_the_entropy(normalization: Normalization) -> None:
    teacher_BK = torch.full((3, 4), 0.25)
    loss = dino_loss(teacher_BK.log().expand(6, 3, 4), teacher_BK, normalization)
    assert loss.item() == pytest.approx(math.log(4) * (6 if normalization == "sum" else 1))


def test_the_student_learns_and_the_teacher_does_not() -> None:
    logits_CBK, teacher_BK = (part.requires_grad_() for part in random_pair())
    dino_loss(logits_CBK, teacher_BK).backward()
    assert teacher_BK.grad is None
    # The gradient of a cross-entropy is the student's assignment less the teacher's.
    expected_CBK = (logits_CBK.softmax(-1) - teacher_BK) / 18
    torch.testing.assert_close(logits_CBK.grad, expected_CBK.detach())


def test_the_order_of_crops_and_images_does_not_matter() -> None:
    logits_CBK, teacher_BK = random_pair()
    moved = dino_loss(logits_CBK.flip(0, 1), teacher_BK.flip(0))
    assert moved.item() == pytest.approx(dino_loss(logits_CBK, teacher_BK).item(), rel=1e-6)


def test_sizes_must_fit() -> None:
    logits_CBK, teacher_BK = random_pair()
    for wrong_CBK in (logits_CBK[:0], logits_CBK[:, :2], logits_CBK[..., :4]):
        with pytest.raises(ValueError, match="needs a crop or more"):
            dino_loss(wrong_CBK, teacher_BK)
