"""What every method promises: the terms that are due, with their weights, and who learns."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from transformers import Tipsv2Model

from tests.training.conftest import TINY_HEAD
from tests.training.methods.conftest import MakeTeacher, MeanColours, take_step
from training.data.batch import Batch, TeacherCells, TextBatch
from training.methods.base import Method
from training.methods.captioned import ImageBackboneConfig
from training.methods.distill import Distill, DistillConfig
from training.methods.pretrain import Pretrain, PretrainConfig
from training.methods.space import SpaceConfig, SpaceDistill

Config = PretrainConfig | DistillConfig | SpaceConfig
Make = Callable[[Config], Method]
PRETRAIN, DISTILL = PretrainConfig(head=TINY_HEAD), DistillConfig(head=TINY_HEAD)
OBSERVED = {"patch_visible", "patch_masked", "target_entropy", "prototypes_used"}
CAPTIONS = {"cls1": 0.5, "cls2": 0.5}
LATE = replace(PRETRAIN, ibot_start=0.5)
RAMP = replace(PRETRAIN, contrast_weight=0.0, head_alone_until=0.2, ibot_ramp_until=0.6)
EXTRAS = replace(
    PRETRAIN,
    ibot_weight=0.0,
    dino_weight=0.0,
    names_weight=3.0,
    image_backbone=ImageBackboneConfig(weight=0.5),
)
WITHIN = replace(DISTILL, patch_from=0.25, patch_until=0.75)
PATCH, IBOT = {"patch": 2.0, "dino": 1.0}, {"ibot": 2.0, "dino": 1.0}


@pytest.fixture
def labelled(cropped: Batch) -> Batch:
    """A batch whose first two images have a teacher, and whose points show one of four names."""
    grid = cropped.pixels_B3HW.shape[-1] // 14
    targets_ND = F.normalize(torch.randn(grid**2, 48), dim=-1)
    name_Bpp = torch.arange(4 * len(cropped.pixels_B3HW)).view(-1, 2, 2) % 5
    cells = TeacherCells(
        patches_VND=targets_ND.expand(2, -1, -1),
        cls1_VD=targets_ND[:2],
        cls2_VD=targets_ND[:2],
        name_Bpp=torch.where(name_Bpp == 4, -1, name_Bpp),
        names=TextBatch(
            token_ids_BL=cropped.cls1.token_ids_BL[:1].expand(4, -1) + torch.arange(4)[:, None],
            mask_BL=cropped.cls1.mask_BL[:1].expand(4, -1),
        ),
    )
    return replace(cropped, cells=cells)


@pytest.fixture
def make(student_model: Tipsv2Model, make_teacher: MakeTeacher) -> Make:
    """Build a method with stand-ins for the networks that teach it."""

    def build(config: Config) -> Method:
        if isinstance(config, SpaceConfig):
            return SpaceDistill(student_model, config)
        if isinstance(config, DistillConfig):
            return Distill(student_model, config, make_teacher(dim=64))
        method = Pretrain(student_model, config)
        method.image_backbone = MeanColours()
        return method

    return build


@pytest.mark.parametrize(
    ("config", "progress", "weights"),
    [
        (PRETRAIN, 0.0, CAPTIONS | IBOT),
        (LATE, 0.49, CAPTIONS | {"dino": 1.0}),
        (LATE, 0.5, CAPTIONS | IBOT),
        (RAMP, 0.1, IBOT),
        (RAMP, 0.3, {"ibot": 0.5, "dino": 1.0}),
        (RAMP, 0.6, IBOT),
        (EXTRAS, 0.1, CAPTIONS | {"names": 3.0, "image_backbone": 0.5}),
        (EXTRAS, 0.9, CAPTIONS | {"names": 3.0}),
        (DISTILL, 0.0, CAPTIONS | PATCH),
        (replace(DISTILL, patch_loss="features"), 0.9, CAPTIONS | PATCH),
        (WITHIN, 0.24, CAPTIONS),
        (WITHIN, 0.25, CAPTIONS | PATCH),
        (WITHIN, 0.74, CAPTIONS | PATCH),
        (WITHIN, 0.75, CAPTIONS),
        (
            SpaceConfig(),
            0.5,
            {"patch": 1.0, "whole": 0.5, "names": 1.0, "cls1": 0.25, "cls2": 0.25},
        ),
        (SpaceConfig(contrast_weight=0.0), 0.5, {"patch": 1.0, "whole": 0.5, "names": 1.0}),
    ],
)
def test_the_loss_is_the_weighted_sum_of_the_terms_that_are_due(
    make: Make, labelled: Batch, config: Config, progress: float, weights: dict[str, float]
) -> None:
    loss, found = take_step(make(config), labelled, progress)
    terms = {name: value for name, value in found.items() if name not in OBSERVED}
    assert terms.keys() == weights.keys()
    expected = torch.stack([weights[name] * value for name, value in terms.items()]).sum()
    torch.testing.assert_close(loss.detach(), expected)
    assert not any(value.requires_grad for value in found.values())


@pytest.mark.parametrize("config", [PRETRAIN, DISTILL, SpaceConfig()])
def test_every_term_falls_while_the_student_learns(
    make: Make, labelled: Batch, config: Config
) -> None:
    method = make(config).eval()  # a centre that moves would change the targets
    optimizer = torch.optim.AdamW(method.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        loss, terms = take_step(method, labelled, 0.5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append({"loss": loss.item(), **terms})
    for name in losses[0].keys() - OBSERVED:
        assert losses[-1][name] < 0.95 * losses[0][name], name
    assert losses[-1]["loss"] < 0.8 * losses[0]["loss"]


def test_images_without_a_teacher_have_names_and_captions_only(make: Make, labelled: Batch) -> None:
    method = make(SpaceConfig()).eval()
    pixels = labelled.pixels_B3HW.clone()
    pixels[2:] = pixels[2:].flip(-1)
    before, after = (
        take_step(method, batch, 0.5)[1]
        for batch in (labelled, replace(labelled, pixels_B3HW=pixels))
    )
    same = {name for name in before if before[name] == after[name]}
    assert same == {"patch", "whole"}
    with pytest.raises(ValueError, match="needs a batch with its cells"):
        take_step(method, replace(labelled, cells=None), 0.5)
