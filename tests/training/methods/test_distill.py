"""Distillation: a frozen teacher outside the student's state, every patch, a window of time."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from transformers import Tipsv2Model, Tipsv2Tokenizer

from model.features import vision_features
from training.config import TrainingConfig
from training.data.batch import Batch
from training.heads import HeadConfig
from training.losses.distillation import distillation_loss
from training.methods.base import Step, StepResult
from training.methods.distill import Distill, DistillConfig
from training.methods.teacher import FrozenTeacher
from training.run import new_model
from training.targets import Centering

HEAD = HeadConfig(hidden=32, bottleneck=16, num_prototypes=24)
CONFIG = DistillConfig(head=HEAD, patch_from=0.25, patch_until=0.75, text_locked_until=0.0)

MakeTeacher = Callable[..., FrozenTeacher]


@pytest.fixture
def make_teacher(tiny_config: TrainingConfig, tokenizer: Tipsv2Tokenizer) -> MakeTeacher:
    """Build a random teacher of some width."""

    def make(*, dim: int = 48) -> FrozenTeacher:
        size = replace(tiny_config.model, dim=dim)
        model = new_model(replace(tiny_config, model=size, seed=5), len(tokenizer))
        centering = Centering(HEAD.num_prototypes, temperature=HEAD.teacher_temperature)
        return FrozenTeacher(model=model, head=HEAD.build(dim), centering=centering)

    return make


def step(method: Distill, batch: Batch, progress: float) -> StepResult:
    rows = len(batch.pixels_B3HW)
    generator = torch.Generator().manual_seed(0)
    return method(
        batch, Step(progress=progress, generator=generator, first_row=0, global_rows=rows)
    )


def test_the_teacher_is_frozen_and_no_part_of_the_student(
    student_model: Tipsv2Model, make_teacher: MakeTeacher
) -> None:
    teacher = make_teacher()
    method = Distill(student_model, CONFIG, teacher)
    parts = {name.split(".")[0] for name in method.state_dict()}
    assert parts == {"model", "head", "contrast", "projection"}
    ours = {id(parameter) for parameter in method.parameters()}
    for module in (teacher.model, teacher.head, teacher.centering):
        assert not module.training
        assert not any(p.requires_grad or id(p) in ours for p in module.parameters())
    method.train()
    assert not teacher.model.training


def test_the_teacher_learns_and_moves_nothing(
    student_model: Tipsv2Model, make_teacher: MakeTeacher, batch: Batch
) -> None:
    teacher = make_teacher()
    before = {name: value.clone() for name, value in teacher.model.state_dict().items()}
    step(Distill(student_model, CONFIG, teacher), batch, 0.5).loss.backward()
    assert all(p.grad is None for p in (*teacher.model.parameters(), *teacher.head.parameters()))
    assert not teacher.centering.centre_K.any()
    for name, value in teacher.model.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize(
    ("progress", "joins"), [(0.0, False), (0.24, False), (0.25, True), (0.74, True), (0.75, False)]
)
def test_the_teacher_has_its_window(
    student_model: Tipsv2Model,
    make_teacher: MakeTeacher,
    batch: Batch,
    progress: float,
    joins: bool,
) -> None:
    result = step(Distill(student_model, CONFIG, make_teacher()), batch, progress)
    assert ("patch" in result.metrics) is joins
    captions = (result.metrics["cls1"] + result.metrics["cls2"]) / 2
    expected = captions + (2.0 * result.metrics["patch"] if joins else 0.0)
    torch.testing.assert_close(result.loss.detach(), expected)


@pytest.mark.parametrize("dim", [48, 64])
def test_every_patch_of_the_whole_picture_is_distilled(
    student_model: Tipsv2Model, make_teacher: MakeTeacher, batch: Batch, dim: int
) -> None:
    # Widths may differ: student and teacher meet in the space of prototypes.
    teacher = make_teacher(dim=dim)
    method = Distill(student_model, CONFIG, teacher)
    with torch.no_grad():
        own = vision_features(student_model, batch.pixels_B3HW)
        theirs = vision_features(teacher.model, batch.pixels_B3HW)
        logits_BNK = method.head(own.patches_BND) / HEAD.student_temperature
        targets_BNK = (teacher.head(theirs.patches_BND) / HEAD.teacher_temperature).softmax(-1)
    torch.testing.assert_close(teacher.assign_patches(theirs.patches_BND), targets_BNK)
    expected = distillation_loss(logits_BNK, targets_BNK)
    torch.testing.assert_close(step(method, batch, 0.5).metrics["patch"], expected)


def test_the_student_learns_from_it(
    student_model: Tipsv2Model, make_teacher: MakeTeacher, batch: Batch
) -> None:
    method = Distill(student_model, CONFIG, make_teacher())
    step(method, batch, 0.5).loss.backward()
    assert method.head.prototypes.grad is not None
    assert method.head.prototypes.grad.any()


def test_nothing_moves_after_a_step(student_model: Tipsv2Model, make_teacher: MakeTeacher) -> None:
    method = Distill(student_model, CONFIG, make_teacher())
    before = {name: value.clone() for name, value in method.state_dict().items()}
    method.after_step()
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())
