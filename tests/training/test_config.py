"""What a configuration refuses."""

from dataclasses import replace
from pathlib import Path

import pytest

from training.config import ModelConfig, TrainingConfig
from training.methods.distill import DistillConfig
from training.methods.pretrain import PretrainConfig


def test_settings_that_contradict_each_other_are_refused(tiny_config: TrainingConfig) -> None:
    with pytest.raises(ValueError, match="--set teacher="):
        replace(tiny_config, method=DistillConfig())
    student = replace(tiny_config, method=DistillConfig(), teacher=Path("runs/teacher"))
    assert student.folder == tiny_config.runs / "tiny"
    with pytest.raises(ValueError, match="mask_ratio must be above 0"):
        PretrainConfig(supervised="masked", mask_ratio=0.0)
    assert PretrainConfig(mask_ratio=0.0).supervised == "all"
    with pytest.raises(ValueError, match="fixes heads"):
        ModelConfig(variant="b14", heads=4)
    with pytest.raises(ValueError, match="no variant 'xl14'"):
        ModelConfig(variant="xl14")


def test_the_models_size_is_the_configs(tiny_config: TrainingConfig) -> None:
    built = tiny_config.model.build(300).to_dict()
    text, vision = built["text_config"], built["vision_config"]
    assert (text["vocab_size"], text["hidden_size"], text["intermediate_size"]) == (300, 48, 192)
    assert (vision["image_size"], vision["num_hidden_layers"]) == (56, 2)
    assert built["temperature_init_value"] == pytest.approx(0.07)
