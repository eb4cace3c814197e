"""Contradictory settings and values out of range are refused."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from training.config import ModelConfig, TrainingConfig
from training.heads import HeadConfig
from training.methods.distill import DistillConfig
from training.methods.pretrain import PretrainConfig
from training.methods.space import SpaceConfig
from training.optim import OptimConfig


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda tiny: replace(tiny, method=DistillConfig()), "--set teacher="),
        (lambda tiny: replace(tiny, precision="int4"), "should be 'float32' or 'bfloat16'"),
        (lambda tiny: replace(tiny, batch_size=1), "should be greater than or equal to 2"),
        (lambda _: PretrainConfig(supervised="masked", mask_ratio=0.0), "mask_ratio above 0"),
        (lambda _: PretrainConfig(mask_ratio=1.5), "mask_ratio\n"),
        (lambda _: SpaceConfig(contrast_weight=-1.0), "contrast_weight\n"),
        (lambda _: ModelConfig(variant="b14", heads=4), "fixes heads"),
        (lambda _: ModelConfig(variant="xl14"), "no variant 'xl14'"),
        (lambda _: HeadConfig(layers=0), "layers"),
        (lambda _: HeadConfig(teacher_temperature=0.0), "teacher_temperature\n"),
        (lambda _: HeadConfig(**{"width": 3}), "width\n  Unexpected keyword"),
        (lambda _: HeadConfig(ema_momentum=1.5), "ema_momentum"),
        (lambda _: OptimConfig(clip_norm=0.0), "clip_norm\n"),
        (lambda _: OptimConfig(final_lr_share=2.0), "final_lr_share\n"),
        (lambda _: OptimConfig(decay_from=1.5), "decay_from\n"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    make: Callable[[TrainingConfig], object], message: str, tiny_config: TrainingConfig
) -> None:
    with pytest.raises(ValueError, match=message):
        make(tiny_config)
