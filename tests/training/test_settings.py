"""Overriding settings by KEY=VALUE: names, types, choices, tuples, optional parts."""

from dataclasses import replace
from pathlib import Path

import pytest

from training.config import DataConfig, TrainingConfig
from training.settings import apply_overrides


def test_nested_settings_change_and_the_rest_stays(tiny_config: TrainingConfig) -> None:
    lines = ["optim.muon_lr=2e-3", "num_steps=9", "data.stages.0.scenes.count_weights=1,2,3"]
    assert isinstance(tiny_config.data, DataConfig)
    (stage,) = tiny_config.data.stages
    scenes = replace(stage.scenes, count_weights=(1.0, 2.0, 3.0))
    assert apply_overrides(tiny_config, lines) == replace(
        tiny_config,
        optim=replace(tiny_config.optim, muon_lr=2e-3),
        num_steps=9,
        data=replace(tiny_config.data, stages=(replace(stage, scenes=scenes),)),
    )


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("name=7", "7"),
        ("name='a b'", "a b"),
        ("name=a=b", "a=b"),
        ("teacher=runs/old", Path("runs/old")),
        ("teacher=none", None),
        ("data.folder=12", Path("12")),
        ("compile=True", True),
        ("precision=bfloat16", "bfloat16"),
        ("method.names_weight=1", 1.0),
        ("data.styles=noto", ("noto",)),
        ("data.captions.cls2.1=alt", "alt"),
        ("data.styles=noto,twemoji", ("noto", "twemoji")),
        ("data.styles=('noto', 'twemoji')", ("noto", "twemoji")),
    ],
)
def test_values_are_read_by_their_types(
    tiny_config: TrainingConfig, line: str, value: object
) -> None:
    found: object = apply_overrides(tiny_config, [line])
    for name in line.partition("=")[0].split("."):
        found = found[int(name)] if isinstance(found, tuple) else getattr(found, name)
    assert (found, type(found)) == (value, type(value)) or isinstance(found, Path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("optim.bogus=1", "unknown setting 'optim.bogus'.*muon_lr"),
        ("optim.muon_lr.deep=1", "there is no 'deep' in a plain value"),
        ("teacher.parts=1", "there is no 'parts'"),
        ("num_steps", "KEY=VALUE"),
        ("num_steps=1.5", "num_steps=1.5: .*valid integer"),
        ("num_steps=none", "valid integer"),
        ("num_steps=0", "num_steps=0: Input should be greater than 0"),
        ("optim.muon_lr=fast", "optim.muon_lr=fast: .*valid number"),
        ("optim=1", "optim=1: .*OptimConfig"),
        ("method.head.ema_momentum=2", "ema_momentum=2: Input should be less than or equal to 1"),
        ("method.supervised=most", "should be 'all' or 'masked'"),
        ("data.stages.0.until=0.5", "until=0.5: the last stage of a curriculum must last until"),
        ("optim.optimizer=sgd", "should be 'muon' or 'adamw'"),
        ("compile=7", "compile=7: .*boolean"),
        ("data.stages=1", "data.stages=1: "),
        ("data.stages.1.until=0.5", "'1' is no index below 1"),
        ("data.stages.first.until=0.5", "'first' is no index"),
        ("data.stages.0.scenes.count_weights=(1,'a')", "valid number"),
    ],
)
def test_a_wrong_line_is_an_error(tiny_config: TrainingConfig, line: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        apply_overrides(tiny_config, [line])
