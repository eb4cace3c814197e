"""Contradictory settings and values out of range are refused."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from training.config import ModelConfig, TrainingConfig
from training.heads import HeadConfig
from training.methods.distill import DistillConfig
from training.methods.pretrain import PretrainConfig
from training.methods.space import SpaceConfig
from training.methods.terms import NameContrastConfig
from training.optim import OptimConfig


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda tiny: replace(tiny, method=DistillConfig()), "--set teacher="),
        (lambda tiny: replace(tiny, precision="int4"), "precision must be one of"),
        (lambda tiny: replace(tiny, batch_size=1), "batch_size at least 2"),
        (lambda _: PretrainConfig(supervised="masked", mask_ratio=0.0), "mask_ratio above 0"),
        (lambda _: PretrainConfig(mask_ratio=1.5), "mask_ratio must lie in"),
        (lambda _: SpaceConfig(contrast_weight=-1.0), "contrast_weight must not be below 0"),
        (lambda _: SpaceConfig(names=NameContrastConfig(weight=1.0)), "has no names term"),
        (lambda _: ModelConfig(variant="b14", heads=4), "fixes heads"),
        (lambda _: ModelConfig(variant="xl14"), "no variant 'xl14'"),
        (lambda _: HeadConfig(layers=0), "layers"),
        (lambda _: HeadConfig(teacher_temperature=0.0), "temperatures"),
        (lambda _: HeadConfig(ema_momentum=1.5), "ema_momentum"),
        (lambda _: OptimConfig(clip_norm=0.0), "clip_norm must be above 0"),
        (lambda _: OptimConfig(final_lr_share=2.0), "final_lr_share is a share"),
        (lambda _: OptimConfig(decay_from=1.5), "decay_from is a share"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    make: Callable[[TrainingConfig], object], message: str, tiny_config: TrainingConfig
) -> None:
    with pytest.raises(ValueError, match=message):
        make(tiny_config)
