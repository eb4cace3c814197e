"""A text tower starts from MiniLM's neighbourhoods of words."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from transformers import Tipsv2Model, Tipsv2Tokenizer

from training.pretrained import text as text_module
from training.pretrained.image_backbone import Basis
from training.pretrained.text import warm_up_text_tower

TEXTS = [f"a {colour} {thing}" for colour in ("red", "blue") for thing in ("dog", "cat", "key")]


def test_warming_up_brings_the_tower_to_its_targets(
    student_model: Tipsv2Model, tokenizer: Tipsv2Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def embed(texts: Sequence[str]) -> Tensor:
        return torch.randn(len(texts), 64, generator=torch.Generator().manual_seed(0))

    def first_axes(features_MF: Tensor, width: int) -> Basis:
        size = features_MF.shape[1]
        return Basis(mean_F=torch.zeros(size), axes_FK=torch.eye(size, width))

    monkeypatch.setattr(text_module, "sentence_embeddings", embed)
    monkeypatch.setattr(text_module, "_BATCH", 16)
    monkeypatch.setattr(text_module, "fit_basis", first_axes)
    vision = {k: v.clone() for k, v in student_model.vision_model.state_dict().items()}
    start = {k: v.clone() for k, v in student_model.text_model.state_dict().items()}
    warm_up_text_tower(student_model, tokenizer, TEXTS, num_steps=5, seed=0)
    trained = {k: v.clone() for k, v in student_model.text_model.state_dict().items()}
    student_model.text_model.load_state_dict(start)
    warm_up_text_tower(student_model, tokenizer, TEXTS, num_steps=5, seed=0)
    for name, value in student_model.text_model.state_dict().items():
        assert torch.equal(value, trained[name]), name
    assert warm_up_text_tower(student_model, tokenizer, TEXTS, num_steps=50, seed=0) > 0.5
    for name, value in student_model.vision_model.state_dict().items():
        assert torch.equal(value, vision[name]), name
