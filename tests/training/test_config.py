"""Contradictory settings and values out of range are refused."""

from dataclasses import replace

import pytest

from training.config import ModelConfig, TrainingConfig
from training.heads import HeadConfig
from training.methods.distill import DistillConfig
from training.methods.pretrain import PretrainConfig
from training.optim import OptimConfig


def test_settings_that_contradict_each_other_are_refused(tiny_config: TrainingConfig) -> None:
    with pytest.raises(ValueError, match="--set teacher="):
        replace(tiny_config, method=DistillConfig())
    with pytest.raises(ValueError, match="needs a mask_ratio above 0"):
        PretrainConfig(supervised="masked", mask_ratio=0.0)
    with pytest.raises(ValueError, match="fixes heads"):
        ModelConfig(variant="b14", heads=4)
    with pytest.raises(ValueError, match="no variant 'xl14'"):
        ModelConfig(variant="xl14")


@pytest.mark.parametrize(
    ("kind", "setting", "message"),
    [
        (HeadConfig, {"layers": 0}, "layers"),
        (HeadConfig, {"teacher_temperature": 0.0}, "temperatures"),
        (HeadConfig, {"ema_momentum": 1.5}, "ema_momentum"),
        (OptimConfig, {"clip_norm": 0.0}, "clip_norm must be above 0"),
        (OptimConfig, {"final_lr_share": 2.0}, "final_lr_share is a share"),
    ],
)
def test_values_out_of_range_are_refused(
    kind: type[HeadConfig | OptimConfig], setting: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**setting)  # type: ignore[arg-type]


def test_the_model_is_built_in_the_configured_size(tiny_config: TrainingConfig) -> None:
    built = tiny_config.model.build(300).to_dict()
    text, vision = built["text_config"], built["vision_config"]
    assert (text["vocab_size"], text["hidden_size"], text["intermediate_size"]) == (300, 48, 192)
    assert (vision["image_size"], vision["num_hidden_layers"]) == (56, 2)
    assert built["temperature_init_value"] == pytest.approx(0.07)
