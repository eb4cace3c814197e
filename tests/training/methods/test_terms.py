"""The shared terms: which embeddings are compared with which texts, and which towers learn."""

from dataclasses import replace
from typing import get_args

import pytest
import torch
from transformers import Tipsv2Model

from model.features import VisionFeatures, vision_features
from training.data.batch import Batch
from training.heads import NameContrast
from training.losses.contrastive import contrastive_loss
from training.losses.fine_grained import patch_name_parts
from training.methods.terms import (
    NameContrastConfig,
    PatchFeatures,
    caption_terms,
    embed_texts,
    name_term,
)


@pytest.fixture
def features(student_model: Tipsv2Model, batch: Batch) -> VisionFeatures:
    """Features of the batch by the new model."""
    return vision_features(student_model, batch.pixels_B3HW)


def test_each_cls_token_is_contrasted_with_its_own_captions(
    student_model: Tipsv2Model, features: VisionFeatures, batch: Batch
) -> None:
    # Of the short captions the first two are equal, of the long ones the last two.
    cls1_ids_T, cls2_ids_T = torch.tensor([[0, 0, 1, 2], [0, 1, 2, 2]])
    batch = replace(batch, cls1_ids_T=cls1_ids_T, cls2_ids_T=cls2_ids_T)
    temperature = torch.tensor(0.05)
    terms = caption_terms(student_model, features, batch, temperature=temperature)
    short, long = (embed_texts(student_model, texts) for texts in (batch.cls1, batch.cls2))
    cls1 = contrastive_loss(features.cls1_BD, short, temperature, batch.cls1_ids_T)
    cls2 = contrastive_loss(features.cls2_BD, long, temperature, batch.cls2_ids_T)
    assert set(terms) == {"cls1", "cls2"}
    torch.testing.assert_close(terms["cls1"], cls1)
    torch.testing.assert_close(terms["cls2"], cls2)


@pytest.mark.parametrize("kind", get_args(PatchFeatures))
def test_names_are_compared_with_the_configured_features(
    student_model: Tipsv2Model, features: VisionFeatures, batch: Batch, kind: PatchFeatures
) -> None:
    config = NameContrastConfig(weight=1.0, features=kind)
    contrast = NameContrast()
    term = name_term(student_model, features, batch, contrast=contrast, config=config)
    stray, hidden_P = patch_name_parts(
        features.values_BND if kind == "values" else features.patches_BND,
        embed_texts(student_model, batch.names),
        batch.present_BU,
        scale=contrast.scale(),
        nothing=contrast.nothing,
        num_shown=4,
    )
    torch.testing.assert_close(term, stray + hidden_P.mean())
    # The images have only four patches.
    more = replace(config, num_shown=99)
    assert term == name_term(student_model, features, batch, contrast=contrast, config=more)


@pytest.mark.parametrize("locked", [True, False])
def test_the_text_tower_learns_unless_it_is_locked(
    student_model: Tipsv2Model, features: VisionFeatures, batch: Batch, locked: bool
) -> None:
    temperature = torch.tensor(0.05)
    terms = caption_terms(student_model, features, batch, temperature=temperature, locked=locked)
    (terms["cls1"] + terms["cls2"]).backward()
    has_gradient = [p.grad is not None for p in student_model.text_model.parameters()]
    assert any(has_gradient) is not locked
    projection = student_model.vision_model.embeddings.patch_embeddings.projection
    assert projection.weight.grad is not None
