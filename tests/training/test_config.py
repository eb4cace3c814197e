"""What a configuration refuses."""

from dataclasses import replace
from pathlib import Path

import pytest

from training.config import ModelConfig, TrainingConfig
from training.methods.distill import DistillConfig
from training.methods.pretrain import PretrainConfig
from training.methods.terms import NameContrastConfig


def test_distillation_needs_a_teacher(tiny_config: TrainingConfig) -> None:
    with pytest.raises(ValueError, match="--set teacher="):
        replace(tiny_config, method=DistillConfig())
    student = replace(tiny_config, method=DistillConfig(), teacher=Path("runs/teacher"))
    assert student.folder == tiny_config.runs / "tiny"


def test_ibot_needs_masks() -> None:
    with pytest.raises(ValueError, match="mask_ratio must be above 0"):
        PretrainConfig(supervised="masked", mask_ratio=0.0)
    assert PretrainConfig(mask_ratio=0.0).supervised == "all"


def test_names_are_contrasted_on_a_feature_that_exists() -> None:
    assert NameContrastConfig(features="values").features == "values"
    with pytest.raises(ValueError, match="features must be one of"):
        NameContrastConfig(features="colours")  # type: ignore[arg-type]


def test_the_models_size_is_the_configs(tiny_config: TrainingConfig) -> None:
    built = tiny_config.model.build(300).to_dict()
    text, vision = built["text_config"], built["vision_config"]
    assert (text["vocab_size"], text["hidden_size"], text["intermediate_size"]) == (300, 48, 192)
    assert (vision["image_size"], vision["num_hidden_layers"]) == (56, 2)
    assert built["temperature_init_value"] == pytest.approx(0.07)


def test_a_variant_gives_the_familys_sizes() -> None:
    built = ModelConfig(variant="so400m14").build(vocab_size=500).to_dict()
    text, vision = built["text_config"], built["vision_config"]
    assert (vision["hidden_size"], text["num_hidden_layers"]) == (1152, 27)
    assert text["vocab_size"] == 500


def test_a_variant_lets_nothing_be_set_that_it_fixes() -> None:
    with pytest.raises(ValueError, match="fixes heads"):
        ModelConfig(variant="b14", heads=4)
    with pytest.raises(ValueError, match="no variant 'xl14'"):
        ModelConfig(variant="xl14")
