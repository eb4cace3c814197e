"""Overriding settings by KEY=VALUE: names, types, choices, tuples, optional parts."""

from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path

import pytest

from training.config import DataConfig, TrainingConfig
from training.methods.pretrain import PretrainConfig
from training.overrides import apply_overrides


def test_nested_settings_change_and_the_rest_stays(tiny_config: TrainingConfig) -> None:
    changed = apply_overrides(
        tiny_config, ["optim.muon_lr=2e-3", "num_steps=9", "method.names.weight=1"]
    )
    assert isinstance(changed.method, PretrainConfig)
    assert isinstance(changed.method.names.weight, float)
    assert isinstance(tiny_config.method, PretrainConfig)
    names = replace(tiny_config.method.names, weight=1.0)
    assert changed == replace(
        tiny_config,
        optim=replace(tiny_config.optim, muon_lr=2e-3),
        num_steps=9,
        method=replace(tiny_config.method, names=names),
    )


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("name=7", "7"),
        ("name='a b'", "a b"),
        ("name=a=b", "a=b"),
        ("teacher=runs/old", Path("runs/old")),
        ("data.folder=12", Path("12")),
        ("compile=True", True),
        ("precision=bfloat16", "bfloat16"),
        ("data.styles=noto", ("noto",)),
        ("data.styles=noto,twemoji", ("noto", "twemoji")),
        ("data.styles=('noto', 'twemoji')", ("noto", "twemoji")),
        ("data.styles=['noto','twemoji']", ("noto", "twemoji")),
    ],
)
def test_values_are_read_by_their_types(
    tiny_config: TrainingConfig, line: str, value: object
) -> None:
    assert attrgetter(line.partition("=")[0])(apply_overrides(tiny_config, [line])) == value


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("optim.bogus=1", "unknown setting 'optim.bogus'.*muon_lr"),
        ("optim.muon_lr.deep=1", "'muon_lr' has no fields"),
        ("num_steps", "KEY=VALUE"),
        ("num_steps=1.5", "num_steps must be of type int"),
        ("num_steps=True", "num_steps must be of type int"),
        ("num_steps=none", "num_steps must be of type int"),
        ("num_steps=0", "num_steps must be at least 1"),
        ("optim.muon_lr=fast", "optim.muon_lr must be of type float"),
        ("optim=1", r"optim must be set field by field \(optimizer, muon_lr"),
        ("optim.optimizer=sgd", r"one of \('muon', 'adamw'\), not 'sgd'"),
        ("compile=1", "compile must be of type bool"),
        ("data.stages=1", "data.stages must be of type tuple"),
        ("data.stages.1.until=0.5", "'1' is not an index from 0 to 0"),
        ("data.stages.first.until=0.5", "'first' is not an index"),
        ("data.stages.0.scenes.count_weights=(1,'a')", "must be of type tuple"),
        ("teacher.parts=1", "it has no fields"),
    ],
)
def test_a_wrong_line_is_an_error(tiny_config: TrainingConfig, line: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        apply_overrides(tiny_config, [line])


def test_an_optional_setting_can_be_set_to_none(tiny_config: TrainingConfig) -> None:
    filled = apply_overrides(tiny_config, ["teacher=runs/x"])
    assert apply_overrides(filled, ["teacher=none"]) == tiny_config


def test_elements_of_tuples_are_addressed_by_index(tiny_config: TrainingConfig) -> None:
    line = "data.stages.0.scenes.count_weights=1,2,3"
    before, data = tiny_config.data, apply_overrides(tiny_config, [line]).data
    assert isinstance(before, DataConfig)
    assert isinstance(data, DataConfig)
    (stage,) = data.stages
    assert stage.scenes == replace(before.stages[0].scenes, count_weights=(1.0, 2.0, 3.0))
    assert isinstance(stage.scenes.count_weights[0], float)


@dataclass(frozen=True)
class Inner:
    """An optional part."""

    size: int = 4
    pair: tuple[int, float] = (1, 2.0)


@dataclass(frozen=True)
class Outer:
    """A configuration with an optional part."""

    inner: Inner | None = None


def test_an_optional_part_has_its_defaults_and_pairs_have_two_values() -> None:
    assert apply_overrides(Outer(), ["inner.size=5"]) == Outer(inner=Inner(size=5))
    assert apply_overrides(Outer(inner=Inner()), ["inner=none"]) == Outer()
    changed = apply_overrides(Outer(), ["inner.pair=3,4"])
    assert changed == Outer(inner=Inner(pair=(3, 4.0)))
    with pytest.raises(ValueError, match=r"inner.pair must be of type tuple\[int, float\]"):
        apply_overrides(Outer(), ["inner.pair=3"])
