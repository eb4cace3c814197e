"""Pretraining: one encoder, a moving average of the head, a patch loss that starts late."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Tipsv2Model

from model.features import VisionTokens, vision_tokens
from model.variants import variant
from tests.training.conftest import TINY_HEAD
from tests.training.methods.conftest import Encoded, take_step
from training.data.batch import Batch
from training.ema import EmaScope
from training.heads import HeadConfig
from training.losses.dino import dino_loss
from training.losses.distillation import token_losses
from training.losses.ibot import Supervised, ibot_loss
from training.masking import random_masks
from training.methods import pretrain as pretrain_module
from training.methods.base import GlobalToken
from training.methods.pretrain import Pretrain, PretrainConfig
from training.optim import OptimConfig, build_optimizers

HEAD = replace(TINY_HEAD, ema_momentum=0.9)
PAPER = PretrainConfig(head=HEAD)
CONFIG = replace(PAPER, ibot_start=0.5)


@pytest.mark.parametrize("ema", ["head", "full"])
def test_the_encoder_sees_the_whole_the_masked_image_and_the_crops(
    student_model: Tipsv2Model, cropped: Batch, encoded: list[Encoded], ema: EmaScope
) -> None:
    method = Pretrain(student_model, replace(PAPER, ema=ema))
    take_step(method, cropped, 0.0)
    own = student_model.vision_model.embeddings
    ours = [(pixels, mask) for tower, pixels, mask in encoded if tower is own]
    # One pass over the whole serves captions and, unless its tower is averaged, the teacher.
    (whole, no_mask), (masked, mask_BN), (crops, no_mask_either) = ours
    assert torch.equal(whole, cropped.pixels_B3HW)
    assert torch.equal(masked, cropped.pixels_B3HW)
    assert torch.equal(crops, cropped.locals_CB3hw.flatten(0, 1))
    assert (no_mask, no_mask_either) == (None, None)
    assert mask_BN is not None
    assert mask_BN.sum(1).tolist() == [3, 3, 3, 3]  # 75 % of four patches
    theirs = [(pixels, mask) for tower, pixels, mask in encoded if tower is not own]
    assert len(theirs) == (ema == "full")
    assert all(mask is None and torch.equal(p, cropped.pixels_B3HW) for p, mask in theirs)


def test_head_only_averaging_saves_what_the_paper_reports() -> None:
    # "42 % fewer training parameters for ViT-B": the vision tower and one head, each with its
    # copy, without the text tower. Full averaging has 2 * 86.3 + 2 * 14.7 M, head-only one 86.3 M
    # less, which is 42.7 %.
    counts = {}
    scopes: tuple[EmaScope, ...] = ("head", "full")
    for ema in scopes:
        with torch.device("meta"):
            model = Tipsv2Model(variant("b14").build())
            method = Pretrain(model, PretrainConfig(head=HeadConfig(), ema=ema))
        parts = (model.vision_model, method.head, method.teacher_head, method.teacher_tower)
        counts[ema] = sum(p.numel() for part in parts if part for p in part.parameters())
    assert 1 - counts["head"] / counts["full"] == pytest.approx(0.427, abs=0.001)


@pytest.mark.parametrize(("token", "separate_heads"), [("cls1", False), ("cls2", True)])
def test_local_crops_predict_the_teachers_assignment_of_the_whole(
    student_model: Tipsv2Model, cropped: Batch, token: GlobalToken, separate_heads: bool
) -> None:
    config = replace(PAPER, dino_token=token, separate_heads=separate_heads)
    method = Pretrain(student_model, config)
    head = method.global_head if separate_heads else method.head
    teacher = method.teacher_global_head if separate_heads else method.teacher_head
    assert head is not None
    assert teacher is not None
    with torch.no_grad():
        teacher.prototypes.add_(0.05)
        whole_BD, crops_ND = (
            getattr(vision_tokens(student_model, pixels), f"{token}_BD")
            for pixels in (cropped.pixels_B3HW, cropped.locals_CB3hw.flatten(0, 1))
        )
        targets_BK = (teacher(whole_BD) / HEAD.teacher_temperature).softmax(-1)
        logits_CBK = head(crops_ND).view(3, 4, 24) / HEAD.student_temperature
        expected = dino_loss(logits_CBK, targets_BK)
    torch.testing.assert_close(take_step(method, cropped, 0.0).metrics["dino"], expected)


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
    result = take_step(method, batch, 0.9, seed=7)
    torch.testing.assert_close(result.metrics["ibot"], expected)
    method.eval()
    again, other = (take_step(method, batch, 0.9, seed=seed).metrics["ibot"] for seed in (7, 8))
    assert again != other  # masks are drawn from the step's generator


@pytest.mark.parametrize("term", ["dino", "ibot"])
def test_no_gradient_flows_back_from_the_teachers_view(
    student_model: Tipsv2Model, cropped: Batch, term: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights: Any = {"dino_weight": 0.0, "ibot_weight": 0.0} | {f"{term}_weight": 1.0}
    method = Pretrain(student_model, replace(PAPER, contrast_weight=0.0, **weights))
    seen: list[VisionTokens] = []

    def encode(*arguments: Tensor) -> VisionTokens:
        tokens = vision_tokens(*arguments)  # type: ignore[arg-type]
        if not seen:  # the whole image comes first
            tokens.patches_BND.retain_grad()
            tokens.cls1_BD.retain_grad()
        seen.append(tokens)
        return tokens

    monkeypatch.setattr(pretrain_module, "vision_tokens", encode)
    take_step(method, cropped, 0.0).loss.backward()
    assert seen[0].patches_BND.grad is None
    assert seen[0].cls1_BD.grad is None
    weight = student_model.vision_model.embeddings.patch_embeddings.projection.weight
    assert weight.grad is not None
    assert weight.grad.any()


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


def test_the_temperature_has_a_floor_that_it_can_leave(
    student_model: Tipsv2Model, cropped: Batch
) -> None:
    with torch.no_grad():
        student_model.temperature.fill_(-0.008)  # as in runs that learnt it without a logarithm
    method = Pretrain(student_model, PAPER)
    learnt, floor = method.log_temperature, PAPER.min_temperature
    method.after_step()
    assert student_model.temperature.item() == pytest.approx(floor, rel=1e-4)
    (optimizer,) = build_optimizers([method], OptimConfig(optimizer="adamw", adamw_lr=0.5))
    for direction, stays in ((1.0, True), (-1.0, False)):
        for _ in range(40):
            learnt.grad = torch.tensor(direction)
            optimizer.step()
            method.after_step()
        # The model has the value that the loss divides by, also when it is saved.
        assert student_model.temperature.item() == pytest.approx(learnt.exp().item(), rel=1e-5)
        assert floor * 0.999 <= student_model.temperature.item()
        assert (student_model.temperature.item() < 1.001 * floor) is stays
        method.zero_grad()
        take_step(method, cropped, 0.0).loss.backward()
        assert learnt.grad is not None
        assert learnt.grad.item() != 0.0


def test_a_new_head_first_learns_alone(student_model: Tipsv2Model, batch: Batch) -> None:
    config = replace(PAPER, contrast_weight=0.0, head_alone_until=0.2)
    for progress, reaches in ((0.1, False), (0.3, True)):
        method = Pretrain(student_model, config)
        student_model.zero_grad()
        take_step(method, batch, progress).loss.backward()
        assert method.head.prototypes.grad is not None
        gradients = [p.grad for p in student_model.vision_model.parameters()]
        assert any(g is not None and g.any() for g in gradients) is reaches
