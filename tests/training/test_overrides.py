"""Overriding settings by KEY=VALUE: names, types, choices, tuples, and what may be empty."""

from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path

import pytest

from training.config import DataConfig, TrainingConfig
from training.methods.pretrain import PretrainConfig
from training.overrides import apply_overrides


def test_nested_settings_change_and_the_rest_stays(tiny_config: TrainingConfig) -> None:
    changed = apply_overrides(
        tiny_config,
        ["optim.muon_lr=2e-3", "num_steps=9", "method.names.weight=1", "data.styles=('noto',)"],
    )
    assert (changed.optim.muon_lr, changed.num_steps) == (2e-3, 9)
    assert isinstance(changed.method, PretrainConfig)
    assert changed.method.names.weight == 1.0
    assert isinstance(changed.method.names.weight, float)
    assert isinstance(changed.data, DataConfig)
    assert changed.data.styles == ("noto",)
    names = replace(changed.method.names, weight=0.0)
    assert (
        replace(
            changed,
            optim=tiny_config.optim,
            num_steps=6,
            data=tiny_config.data,
            method=replace(changed.method, names=names),
        )
        == tiny_config
    )


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("name=7", "7"),
        ("name='a b'", "a b"),
        ("name=a=b", "a=b"),
        ("runs=elsewhere", Path("elsewhere")),
        ("teacher=runs/old", Path("runs/old")),
        ("data.folder=12", Path("12")),
        ("compile=True", True),
        ("precision=float32", "float32"),
        ("parallel=fsdp2", "fsdp2"),
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
        ("bogus=1", "unknown setting 'bogus'.*not one of name, method"),
        ("optim.bogus=1", "unknown setting 'optim.bogus'.*muon_lr"),
        ("optim.muon_lr.deep=1", "'muon_lr' has no fields"),
        ("num_steps", "KEY=VALUE, not 'num_steps'"),
        ("num_steps=many", "num_steps must be of type int, not 'many'"),
        ("num_steps=1.5", "num_steps must be of type int"),
        ("optim.muon_lr=fast", "optim.muon_lr must be of type float"),
        ("optim=1", r"optim must be set field by field \(optimizer, muon_lr"),
        ("method.names.features=pixels", "features must be one of"),
        ("method.names.num_shown=0", "at least 1"),
        ("method.supervised=visible", "supervised must be one of"),
        ("optim.optimizer=sgd", r"one of \('muon', 'adamw', 'adafactor'\), not 'sgd'"),
        ("precision=float16", r"precision must be one of \('float32', 'bfloat16'\)"),
        ("compile=1", "compile must be of type bool"),
        ("num_steps=True", "num_steps must be of type int"),
        ("num_steps=none", "num_steps must be of type int"),
        ("data.stages=1", "data.stages must be of type tuple"),
        ("data.stages.1.until=0.5", "'1' is not an index from 0 to 0"),
        ("data.stages.first.until=0.5", "'first' is not an index from 0 to 0"),
        ("data.stages.0.scenes.count_weights=(1,'a')", "must be of type tuple"),
        ("teacher.parts=1", "it has no fields"),
        ("batch_size=1", "batch_size at least 2"),
        ("num_steps=0", "num_steps must be at least 1"),
    ],
)
def test_mistakes_are_named(tiny_config: TrainingConfig, line: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        apply_overrides(tiny_config, [line])


def test_optional_settings_can_be_set_to_none(tiny_config: TrainingConfig) -> None:
    filled = apply_overrides(tiny_config, ["teacher=runs/x"])
    assert filled.teacher == Path("runs/x")
    assert apply_overrides(filled, ["teacher=none"]) == tiny_config


def test_parts_of_tuples_are_numbered(tiny_config: TrainingConfig) -> None:
    line = "data.stages.0.scenes.count_weights=1,2,3"
    before, data = tiny_config.data, apply_overrides(tiny_config, [line]).data
    assert isinstance(before, DataConfig)
    assert isinstance(data, DataConfig)
    (stage,) = data.stages
    assert stage.scenes.count_weights == (1.0, 2.0, 3.0)
    assert isinstance(stage.scenes.count_weights[0], float)
    assert stage.scenes.size == before.stages[0].scenes.size


@dataclass(frozen=True)
class Inner:
    """A part that may be there or not."""

    size: int = 4
    pair: tuple[int, float] = (1, 2.0)


@dataclass(frozen=True)
class Outer:
    """A configuration of another kind."""

    inner: Inner | None = None


def test_an_optional_part_begins_with_its_defaults() -> None:
    assert apply_overrides(Outer(), ["inner.size=5"]) == Outer(inner=Inner(size=5))
    assert apply_overrides(Outer(inner=Inner()), ["inner=none"]) == Outer()


def test_a_pair_has_two_values() -> None:
    changed = apply_overrides(Outer(), ["inner.pair=3,4"])
    assert changed == Outer(inner=Inner(pair=(3, 4.0)))
    with pytest.raises(ValueError, match=r"inner.pair must be of type tuple\[int, float\]"):
        apply_overrides(Outer(), ["inner.pair=3"])
