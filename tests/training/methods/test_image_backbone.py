"""Terms of the image backbone and of the titles of drawings."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import Tipsv2Model, Tipsv2Tokenizer

from model.features import vision_tokens
from tests.training.methods.conftest import MeanColours, take_step
from training.data.batch import Batch, UnnamedDrawings, text_ids, tokenize
from training.heads import HeadConfig
from training.losses.contrastive import contrastive_loss
from training.methods.image_backbone import ImageBackboneConfig, image_backbone_term, title_term
from training.methods.pretrain import Pretrain, PretrainConfig
from training.methods.terms import embed_texts

CONFIG = PretrainConfig(
    dino_weight=0.0,
    ibot_weight=0.0,
    head=HeadConfig(hidden=16, bottleneck=8, num_prototypes=8),
    image_backbone=ImageBackboneConfig(weight=2.0, scenes_until=0.5, titles_weight=0.5),
)


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


def test_patches_are_compared_with_their_cells_and_images_with_the_mean() -> None:
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


def test_titled_drawings_are_contrasted_with_their_titles(
    student_model: Tipsv2Model, tokenizer: Tipsv2Tokenizer, drawings: UnnamedDrawings
) -> None:
    tokens = vision_tokens(student_model, drawings.pixels_E3hw)
    term = title_term(student_model, tokens, drawings, temperature=student_model.temperature)
    expected = contrastive_loss(
        tokens.cls1_BD[[0, 2, 3, 4]],
        embed_texts(student_model, drawings.titles),
        student_model.temperature,
        torch.tensor([0, 1, 0, 2]),
    )
    torch.testing.assert_close(term, expected)
    untitled = replace(
        drawings,
        titled_E=torch.zeros(5, dtype=torch.bool),
        titles=tokenize(tokenizer, []),
        title_ids_T=text_ids([]),
    )
    assert (
        title_term(student_model, tokens, untitled, temperature=student_model.temperature).item()
        == 0.0
    )


def test_the_backbone_encodes_scenes_early_and_unnamed_drawings_throughout(
    student_model: Tipsv2Model, batch: Batch, drawings: UnnamedDrawings
) -> None:
    batch = replace(batch, unnamed=drawings)
    method = Pretrain(student_model, CONFIG)
    method.image_backbone = backbone = MeanColours()
    result = take_step(method, batch, 0.49)
    early, loss = result.metrics, result.loss
    assert backbone.shown == [4, 5]
    late = take_step(method, batch, 0.5).metrics
    assert backbone.shown == [4, 5, 5]
    assert set(early) == set(late) == {"cls1", "cls2", "image_backbone", "titles"}
    expected = (
        (early["cls1"] + early["cls2"]) / 2 + 2.0 * early["image_backbone"] + 0.5 * early["titles"]
    )
    torch.testing.assert_close(loss.detach(), expected)
    # Four scenes and five drawings are weighted by their number.
    scenes_only = take_step(method, replace(batch, unnamed=None), 0.1).metrics
    together = (4 * scenes_only["image_backbone"] + 5 * late["image_backbone"]) / 9
    torch.testing.assert_close(early["image_backbone"], together)


def test_without_weight_unnamed_drawings_are_not_encoded(
    student_model: Tipsv2Model, batch: Batch, drawings: UnnamedDrawings
) -> None:
    method = Pretrain(student_model, replace(CONFIG, image_backbone=ImageBackboneConfig()))
    metrics = take_step(method, replace(batch, unnamed=drawings), 0.1).metrics
    assert set(metrics) == {"cls1", "cls2"}


def test_a_missing_backbone_is_an_error(student_model: Tipsv2Model, batch: Batch) -> None:
    with pytest.raises(ValueError, match="no image backbone is loaded"):
        take_step(Pretrain(student_model, CONFIG), batch, 0.1)
