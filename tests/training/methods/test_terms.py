"""The shared terms: which embeddings are compared with which texts, which towers learn; masks."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Tipsv2Model

from model.features import VisionTokens, vision_tokens
from training.data.batch import Batch
from training.heads import NameContrast
from training.losses.contrastive import contrastive_loss
from training.losses.fine_grained import patch_name_parts
from training.methods.captioned import random_masks
from training.methods.terms import caption_terms, embed_texts, name_term


@pytest.fixture
def tokens(student_model: Tipsv2Model, batch: Batch) -> VisionTokens:
    """Tokens of the batch by the new model."""
    return vision_tokens(student_model, batch.pixels_B3HW)


def test_each_cls_token_is_contrasted_with_its_own_captions(
    student_model: Tipsv2Model, tokens: VisionTokens, batch: Batch
) -> None:
    # Of the short captions the first two are equal, of the long ones the last two.
    cls1_ids_T, cls2_ids_T = torch.tensor([[0, 0, 1, 2], [0, 1, 2, 2]])
    batch = replace(batch, cls1_ids_T=cls1_ids_T, cls2_ids_T=cls2_ids_T)
    heat = torch.tensor(0.05)
    terms = caption_terms(student_model, tokens, batch, heat)
    short, long = (embed_texts(student_model, texts) for texts in (batch.cls1, batch.cls2))
    cls1 = contrastive_loss(tokens.cls1_BD, short, heat, cls1_ids_T)
    cls2 = contrastive_loss(tokens.cls2_BD, long, heat, cls2_ids_T)
    torch.testing.assert_close(terms, {"cls1": cls1, "cls2": cls2})
    (terms["cls1"] + terms["cls2"]).backward()
    assert any(p.grad is not None for p in student_model.text_model.parameters())
    assert student_model.vision_model.embeddings.patch_embeddings.projection.weight.grad is not None


def test_names_are_compared_with_the_patches(
    student_model: Tipsv2Model, tokens: VisionTokens, batch: Batch
) -> None:
    contrast = NameContrast()
    term = name_term(student_model, tokens, batch, contrast)
    stray, hidden_P = patch_name_parts(
        tokens.patches_BND,
        embed_texts(student_model, batch.names),
        batch.present_BU,
        scale=contrast.scale(),
        nothing=contrast.nothing,
        num_shown=4,
    )
    torch.testing.assert_close(term, stray + hidden_P.mean())


@given(
    batch=st.integers(1, 6),
    num_patches=st.integers(1, 80),
    ratio=st.floats(0, 1),
    seed=st.integers(0, 2**31),
)
def test_every_image_has_the_same_number_of_masked_patches(
    batch: int, num_patches: int, ratio: float, seed: int
) -> None:
    masked_BN = random_masks(batch, num_patches, ratio, torch.Generator().manual_seed(seed))
    again_BN = random_masks(batch, num_patches, ratio, torch.Generator().manual_seed(seed))
    assert masked_BN.dtype == torch.bool
    assert masked_BN.shape == (batch, num_patches)
    assert masked_BN.sum(1).tolist() == [round(ratio * num_patches)] * batch
    assert torch.equal(masked_BN, again_BN)
