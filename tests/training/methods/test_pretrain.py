"""Pretraining: one encoder, a moving average of the head, a patch loss that starts late."""

from dataclasses import replace

import pytest
import torch
from transformers import Tipsv2Model

from model.features import vision_tokens
from tests.training.conftest import TINY_HEAD
from tests.training.methods.conftest import take_step
from training.data.batch import Batch
from training.losses.distillation import Supervised, dino_loss, ibot_loss, token_losses
from training.methods.captioned import random_masks
from training.methods.pretrain import Pretrain, PretrainConfig

HEAD = replace(TINY_HEAD, ema_momentum=0.9)
PAPER = PretrainConfig(head=HEAD)
CONFIG = replace(PAPER, ibot_start=0.5)


def test_local_crops_predict_the_teachers_assignment_of_the_whole(
    student_model: Tipsv2Model, cropped: Batch
) -> None:
    method = Pretrain(student_model, PAPER)
    head, teacher = method.head, method.teacher_head
    assert teacher is not None
    with torch.no_grad():
        teacher.prototypes.add_(0.05)
        whole_BD, crops_ND = (
            vision_tokens(student_model, pixels).cls1_BD
            for pixels in (cropped.pixels_B3HW, cropped.locals_CB3hw.flatten(0, 1))
        )
        targets_BK = (teacher(whole_BD) / HEAD.teacher_temperature).softmax(-1)
        logits_CBK = head(crops_ND).view(3, 4, 24) / HEAD.student_temperature
        expected = dino_loss(logits_CBK, targets_BK)
    torch.testing.assert_close(take_step(method, cropped, 0.0)[1]["dino"], expected)


@pytest.mark.parametrize("supervised", ["all", "masked"])
def test_the_teacher_sees_the_whole_and_the_student_the_masked_image(
    student_model: Tipsv2Model, batch: Batch, supervised: Supervised
) -> None:
    method = Pretrain(student_model, replace(CONFIG, supervised=supervised))
    assert method.teacher_head is not None
    with torch.no_grad():
        method.teacher_head.prototypes.add_(0.05)
        whole = vision_tokens(student_model, batch.pixels_B3HW)
        cosines_BNK = method.teacher_head(whole.patches_BND)
        targets_BNK = (cosines_BNK / HEAD.teacher_temperature).softmax(-1)
        masked_BN = random_masks(4, 4, 0.75, torch.Generator().manual_seed(7))
        student = vision_tokens(student_model, batch.pixels_B3HW, masked_BN)
        logits_BNK = method.head(student.patches_BND) / HEAD.student_temperature
        expected = ibot_loss(token_losses(logits_BNK, targets_BNK), masked_BN, supervised)
    _, terms = take_step(method, batch, 0.9, seed=7)
    torch.testing.assert_close(terms["ibot"], expected)
    method.eval()
    again, other = (take_step(method, batch, 0.9, seed=seed)[1]["ibot"] for seed in (7, 8))
    assert again != other  # masks are drawn from the step's generator


def test_only_the_teacher_head_follows_the_head(student_model: Tipsv2Model) -> None:
    method = Pretrain(student_model, CONFIG)
    with torch.no_grad():
        for parameter in (*method.model.vision_model.parameters(), *method.head.parameters()):
            parameter.add_(0.1)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    method.after_step()
    for name, value in method.state_dict().items():
        if name.startswith("teacher_head."):
            current = before[name.removeprefix("teacher_")]
            torch.testing.assert_close(value, 0.9 * before[name] + 0.1 * current)
        else:
            assert torch.equal(value, before[name]), name
