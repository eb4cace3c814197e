"""Scenes with known answers, and a tiny model with its tokenizer."""

from dataclasses import replace

import pytest
from transformers import Tipsv2Model, Tipsv2Tokenizer

from model.encoder import Tipsv2Encoder
from training.data.scenes import Scene, SceneConfig, SceneSource, compose_scene

SCENES = SceneConfig(size=42, count_weights=(0.0, 0.6, 0.4), min_size=0.4, twin_share=0.0)


@pytest.fixture(scope="session")
def names(source: SceneSource) -> list[str]:
    """The candidates: every name of the source."""
    return sorted(source.names)


@pytest.fixture(scope="session")
def scenes(source: SceneSource) -> list[Scene]:
    """Ten scenes of two or three objects."""
    return [compose_scene(replace(source, split="test"), i, SCENES) for i in range(10)]


@pytest.fixture
def encoder(student_model: Tipsv2Model, tokenizer: Tipsv2Tokenizer) -> Tipsv2Encoder:
    """A fresh model in evaluation mode, with its tokenizer."""
    return Tipsv2Encoder(student_model.eval(), tokenizer)
