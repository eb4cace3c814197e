"""The choices with the best development scores are taken; random weights keep the shape only."""

from pathlib import Path

import pytest
import torch
from transformers import Tipsv2Model

from model.encoder import Tipsv2Encoder
from training.data.scenes import Scene, SceneSource
from training.data.sprites import SpriteBank
from training.evaluate import chosen_encoder
from training.evaluate.chosen_encoder import Development, load_chosen
from training.evaluate.encoder import SceneEncoder
from training.evaluate.ranking import single_drawings
from training.evaluate.sets import SegmentationBenchmark


@pytest.fixture
def development(
    scenes: list[Scene], names: list[str], sprite_bank: SpriteBank, source: SceneSource
) -> Development:
    """Two sets of five scenes and two of drawings."""
    return Development(
        scenes=[
            SegmentationBenchmark(name="a", scenes=scenes[:5], names=names),
            SegmentationBenchmark(name="b", scenes=scenes[5:], names=names),
        ],
        drawings=[
            single_drawings(
                style, sprite_bank, styles=(style,), shown=source.names, names=source.names
            )
            for style in ("noto", "fluent-3d")
        ],
    )


def test_the_choices_with_the_best_mean_scores_are_taken(
    encoder: Tipsv2Encoder, development: Development
) -> None:
    chosen = chosen_encoder.choose(encoder, development)
    miou, top = {}, {}
    for templates in ("none", "tcl"):
        for kind in ("patches", "values"):
            encoders = [SceneEncoder(encoder, b.scenes) for b in development.scenes]
            miou[kind, templates] = sum(
                b.patch_counts(e, e.classes(b.names, templates), kind).miou()
                for b, e in zip(development.scenes, encoders, strict=True)
            )
        top[templates] = sum(b.classify(encoder, templates).found(1) for b in development.drawings)
    assert miou[chosen.features, chosen.templates] == max(miou.values())
    assert len(set(miou.values())) > 1
    assert top[chosen.class_templates] == max(top.values())


def test_random_weights_have_only_the_shape_of_the_model(
    encoder_model: Tipsv2Model, folder: Path, development: Development
) -> None:
    with torch.no_grad():
        for parameter in encoder_model.vision_model.parameters():
            parameter.mul_(1.1)  # as if trained
    encoder_model.save_pretrained(folder)
    trained = load_chosen(folder, development)
    random = load_chosen(folder, development, is_random=True)
    again = load_chosen(folder, development, is_random=True)
    states = [chosen.encoder.vision.state_dict() for chosen in (trained, random, again)]
    assert not any(module.training for module in trained.encoder.vision.modules())
    for name, value in states[0].items():
        assert states[1][name].shape == value.shape
        assert states[1][name].equal(states[2][name])
    weight = "model.vision_model.encoder.layer.0.mlp.fc1.weight"
    assert not states[0][weight].equal(states[1][weight])
