"""Terms of the image backbone and of titles: every patch and title is compared with its own."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Tipsv2Model, Tipsv2Tokenizer

from model.features import vision_tokens
from training.data.batch import Batch, UnnamedDrawings, text_ids, tokenize
from training.heads import HeadConfig
from training.losses.contrastive import contrastive_loss
from training.methods.base import Step
from training.methods.image_backbone import (
    TARGET_WIDTH,
    ImageBackboneConfig,
    image_backbone_term,
    title_term,
)
from training.methods.pretrain import Pretrain, PretrainConfig
from training.methods.terms import embed_texts

CONFIG = PretrainConfig(
    dino_weight=0.0,
    ibot_weight=0.0,
    head=HeadConfig(hidden=16, bottleneck=8, num_prototypes=8),
    image_backbone=ImageBackboneConfig(weight=2.0, scenes_until=0.5, titles_weight=0.5),
)


class RecordingBackbone:
    """Answers with seeded numbers, and remembers how many images it was shown."""

    def __init__(self) -> None:
        self.shown: list[int] = []

    def patch_targets(self, pixels_B3HW: Tensor) -> Tensor:
        self.shown.append(len(pixels_B3HW))
        generator = torch.Generator().manual_seed(len(pixels_B3HW))
        return torch.randn(len(pixels_B3HW), 4, TARGET_WIDTH, generator=generator)


@pytest.fixture
def drawings(tokenizer: Tipsv2Tokenizer) -> UnnamedDrawings:
    """Five drawings of 28 pixels; the second has no title, and two have the same."""
    titles = ["lamp", "kettle", "lamp", "rug"]
    return UnnamedDrawings(
        pixels_E3hw=torch.rand(5, 3, 28, 28, generator=torch.Generator().manual_seed(1)),
        titled_E=torch.tensor([True, False, True, True, True]),
        titles=tokenize(tokenizer, titles),
        title_ids_T=text_ids(titles),
    )


def metrics_and_loss(
    method: Pretrain, batch: Batch, progress: float
) -> tuple[dict[str, Tensor], Tensor]:
    step = Step(
        progress=progress, generator=torch.Generator(), first_row=0, global_rows=len(batch.cls1)
    )
    result = method(batch, step)
    return result.metrics, result.loss


def test_each_patch_meets_its_own_cell_and_each_image_the_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    patches_BND = torch.randn(3, 4, 8, generator=generator)
    cells_BNK = torch.randn(3, 4, 6, generator=generator)
    projection = nn.Linear(8, 6)
    cosines = [
        F.cosine_similarity(projection(patches_BND[b, n]), cells_BNK[b, n], dim=0)
        for b in range(3)
        for n in range(4)
    ]
    means = [
        F.cosine_similarity(projection(patches_BND[b].mean(0)), cells_BNK[b].mean(0), dim=0)
        for b in range(3)
    ]
    expected = 2 - torch.stack(cosines).mean() - torch.stack(means).mean()
    torch.testing.assert_close(image_backbone_term(patches_BND, cells_BNK, projection), expected)
    shuffled = image_backbone_term(patches_BND, cells_BNK.flip(1), projection)
    assert not torch.isclose(shuffled, expected)


def test_titled_drawings_meet_their_titles(
    student_model: Tipsv2Model, drawings: UnnamedDrawings
) -> None:
    tokens = vision_tokens(student_model, drawings.pixels_E3hw)
    term = title_term(student_model, tokens, drawings)
    expected = contrastive_loss(
        tokens.cls1_BD[[0, 2, 3, 4]],
        embed_texts(student_model, drawings.titles),
        student_model.temperature,
        torch.tensor([0, 1, 0, 2]),
    )
    torch.testing.assert_close(term, expected)


def test_drawings_without_titles_say_nothing(
    student_model: Tipsv2Model, tokenizer: Tipsv2Tokenizer, drawings: UnnamedDrawings
) -> None:
    nameless = replace(
        drawings,
        titled_E=torch.zeros(5, dtype=torch.bool),
        titles=tokenize(tokenizer, []),
        title_ids_T=text_ids([]),
    )
    tokens = vision_tokens(student_model, drawings.pixels_E3hw)
    assert title_term(student_model, tokens, nameless).item() == 0.0


def test_the_backbone_sees_scenes_early_and_unnamed_drawings_throughout(
    student_model: Tipsv2Model, batch: Batch, drawings: UnnamedDrawings
) -> None:
    batch = replace(batch, unnamed=drawings)
    method = Pretrain(student_model, CONFIG)
    method.image_backbone = backbone = RecordingBackbone()
    early, loss = metrics_and_loss(method, batch, 0.49)
    assert backbone.shown == [4, 5]
    late, _ = metrics_and_loss(method, batch, 0.5)
    assert backbone.shown == [4, 5, 5]
    assert set(early) == set(late) == {"cls1", "cls2", "image_backbone", "titles"}
    expected = (
        (early["cls1"] + early["cls2"]) / 2 + 2.0 * early["image_backbone"] + 0.5 * early["titles"]
    )
    torch.testing.assert_close(loss.detach(), expected)
    # Four scenes and five drawings count by their number.
    scenes_only, _ = metrics_and_loss(method, replace(batch, unnamed=None), 0.1)
    together = (4 * scenes_only["image_backbone"] + 5 * late["image_backbone"]) / 9
    torch.testing.assert_close(early["image_backbone"], together)


def test_without_weight_unnamed_drawings_are_not_looked_at(
    student_model: Tipsv2Model, batch: Batch, drawings: UnnamedDrawings
) -> None:
    method = Pretrain(student_model, replace(CONFIG, image_backbone=ImageBackboneConfig()))
    metrics, _ = metrics_and_loss(method, replace(batch, unnamed=drawings), 0.1)
    assert set(metrics) == {"cls1", "cls2"}


def test_a_missing_backbone_is_reported(student_model: Tipsv2Model, batch: Batch) -> None:
    with pytest.raises(ValueError, match="no image backbone is loaded"):
        metrics_and_loss(Pretrain(student_model, CONFIG), batch, 0.1)
