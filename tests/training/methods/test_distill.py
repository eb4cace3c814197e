"""Distillation: a frozen teacher outside the student's state, all patches, a share of the run."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import Tipsv2Model, Tipsv2Tokenizer

from model.features import vision_tokens
from tests.training.conftest import TINY_HEAD as HEAD
from tests.training.methods.conftest import MakeTeacher, take_step
from training.config import TrainingConfig
from training.data.batch import Batch
from training.losses.distillation import Supervised, dino_loss, feature_loss, token_losses
from training.methods.distill import Distill, DistillConfig, TextStart
from training.methods.pretrain import Pretrain, PretrainConfig
from training.run import build_method, new_model

PAPER = DistillConfig(head=HEAD)


@pytest.mark.parametrize("dim", [48, 64])  # widths may differ, because prototypes are compared
def test_patches_and_local_crops_predict_the_teachers_assignments(
    student_model: Tipsv2Model, make_teacher: MakeTeacher, cropped: Batch, dim: int
) -> None:
    teacher = make_teacher(dim=dim)
    method = Distill(student_model, PAPER, teacher)
    assert method.head is not None
    assert teacher.head is not None
    with torch.no_grad():
        own = vision_tokens(student_model, cropped.pixels_B3HW)
        theirs = vision_tokens(teacher.vision_model, cropped.pixels_B3HW)
        targets_BNK = (teacher.head(theirs.patches_BND) / HEAD.teacher_temperature).softmax(-1)
        logits_BNK = method.head(own.patches_BND) / HEAD.student_temperature
        crops = vision_tokens(student_model, cropped.locals_CB3hw.flatten(0, 1))
        logits_CBK = method.head(crops.cls1_BD).view(3, 4, 24) / HEAD.student_temperature
        dino = dino_loss(logits_CBK, teacher.assign_global(theirs.cls1_BD))
    _, terms = take_step(method, cropped, 0.0)
    torch.testing.assert_close(terms["patch"], token_losses(logits_BNK, targets_BNK).mean())
    torch.testing.assert_close(terms["dino"], dino)


@pytest.mark.parametrize("dim", [48, 64])
def test_features_of_another_width_are_compared_through_a_projector(
    student_model: Tipsv2Model, make_teacher: MakeTeacher, cropped: Batch, dim: int
) -> None:
    teacher = make_teacher(dim=dim, has_head=False)
    method = Distill(student_model, replace(PAPER, patch_loss="features"), teacher)
    assert isinstance(method.projector, nn.Identity if dim == 48 else nn.Linear)
    loss, terms = take_step(method, cropped, 0.0)
    with torch.no_grad():
        own = vision_tokens(student_model, cropped.pixels_B3HW)
        theirs = teacher.encode(cropped.pixels_B3HW)
        expected = feature_loss(method.projector(own.patches_BND), theirs.patches_BND)
    torch.testing.assert_close(terms["patch"], expected)
    loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in method.projector.parameters())


def test_a_teacher_without_the_same_prototypes_is_refused(
    student_model: Tipsv2Model, make_teacher: MakeTeacher
) -> None:
    more = replace(PAPER, head=replace(HEAD, num_prototypes=25))
    with pytest.raises(ValueError, match="the teacher has 24 prototypes"):
        Distill(student_model, more, make_teacher())
    with pytest.raises(ValueError, match='patch_loss="features"'):
        Distill(student_model, PAPER, make_teacher(has_head=False))
    wide = replace(PAPER, text_start="teacher")
    with pytest.raises(ValueError, match="needs text towers of equal shape"):
        Distill(student_model, wide, make_teacher(dim=64))


@pytest.fixture
def teacher_folder(tiny_config: TrainingConfig, tokenizer: Tipsv2Tokenizer, tmp_path: Path) -> Path:
    """Model, heads and averages of a pretraining run of the student's size."""
    folder = tmp_path / "teacher"
    model = new_model(replace(tiny_config, seed=5), len(tokenizer))
    model.save_pretrained(folder / "model")
    state = Pretrain(model, PretrainConfig(head=HEAD, ema="full")).state_dict()
    heads = {
        name: value + 0.01 * name.startswith("teacher_")
        for name, value in state.items()
        if not name.startswith("model.")
    }
    heads["global_centering.centre_K"] = torch.linspace(-0.1, 0.1, HEAD.num_prototypes)
    torch.save(heads, folder / "heads.pt")
    return folder


@pytest.mark.parametrize("text_start", ["fresh", "teacher"])
def test_the_students_vision_tower_starts_at_random(
    tiny_config: TrainingConfig,
    tokenizer: Tipsv2Tokenizer,
    teacher_folder: Path,
    text_start: TextStart,
) -> None:
    method = replace(PAPER, text_start=text_start)
    config = replace(tiny_config, method=method, teacher=teacher_folder, seed=1)
    student = build_method(config, len(tokenizer)).model
    random = new_model(config, len(tokenizer))
    teacher = Tipsv2Model.from_pretrained(teacher_folder / "model")

    def same(tower: str, other: Tipsv2Model) -> bool:
        own, theirs = (getattr(model, tower).state_dict() for model in (student, other))
        return all(torch.equal(own[name], theirs[name]) for name in own)

    assert same("vision_model", random)
    assert not same("vision_model", teacher)
    assert same("text_model", teacher) is (text_start == "teacher")
    assert same("text_model", random) is (text_start == "fresh")


def test_the_teacher_is_frozen_and_not_part_of_the_student(
    student_model: Tipsv2Model, make_teacher: MakeTeacher, batch: Batch
) -> None:
    teacher = make_teacher()
    method = Distill(student_model, PAPER, teacher).train()
    parts = {name.split(".")[0] for name in method.state_dict()}
    assert parts == {"model", "log_temperature", "head", "contrast", "projection"}
    before = {name: value.clone() for name, value in teacher.vision_model.state_dict().items()}
    take_step(method, batch, 0.5)[0].backward()
    assert method.head is not None
    assert method.head.prototypes.grad is not None
    assert teacher.head is not None
    assert not teacher.vision_model.training
    for module in (teacher.vision_model, teacher.head):
        assert all(p.grad is None and not p.requires_grad for p in module.parameters())
    for name, value in teacher.vision_model.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("supervised", ["all", "masked"])
def test_a_mask_hides_patches_and_may_select_the_supervised_ones(
    student_model: Tipsv2Model, make_teacher: MakeTeacher, cropped: Batch, supervised: Supervised
) -> None:
    config = replace(PAPER, mask_ratio=0.5, supervised=supervised)
    _, terms = take_step(Distill(student_model, config, make_teacher()), cropped, 0.0)
    both = (terms["patch_masked"] + terms["patch_visible"]) / 2  # two of four patches each
    expected = both if supervised == "all" else terms["patch_masked"]
    torch.testing.assert_close(terms["patch"], expected)
