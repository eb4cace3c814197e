"""Overriding settings by KEY=VALUE, and what a configuration refuses."""

from dataclasses import replace
from pathlib import Path

import pytest

from training.config import ModelConfig, TrainingConfig, apply_overrides
from training.methods.distill import DistillConfig
from training.methods.pretrain import PretrainConfig
from training.methods.terms import NameContrastConfig


def test_nested_settings_change_and_the_rest_stays(tiny_config: TrainingConfig) -> None:
    changed = apply_overrides(
        tiny_config,
        ["optim.muon_lr=2e-3", "num_steps=9", "method.names.weight=1", "data.styles=('noto',)"],
    )
    assert (changed.optim.muon_lr, changed.num_steps) == (2e-3, 9)
    assert isinstance(changed.method, PretrainConfig)
    assert changed.method.names.weight == 1.0
    assert isinstance(changed.method.names.weight, float)
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


def test_no_overrides_change_nothing(tiny_config: TrainingConfig) -> None:
    assert apply_overrides(tiny_config, []) is tiny_config


def test_the_last_of_two_overrides_counts(tiny_config: TrainingConfig) -> None:
    assert apply_overrides(tiny_config, ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("line", "name"), [("name=7", "7"), ("name='a b'", "a b"), ("name=a=b", "a=b"), ("name=x", "x")]
)
def test_text_stays_text(tiny_config: TrainingConfig, line: str, name: str) -> None:
    assert apply_overrides(tiny_config, [line]).name == name


def test_paths_are_paths(tiny_config: TrainingConfig) -> None:
    changed = apply_overrides(tiny_config, ["runs=elsewhere", "teacher=runs/old", "data.folder=12"])
    assert (changed.runs, changed.teacher) == (Path("elsewhere"), Path("runs/old"))
    assert changed.data.folder == Path("12")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("bogus=1", "unknown setting 'bogus'.*none of name, method"),
        ("optim.bogus=1", "unknown setting 'optim.bogus'.*muon_lr"),
        ("optim.muon_lr.deep=1", "'muon_lr' has no parts"),
        ("num_steps", "KEY=VALUE, not 'num_steps'"),
        ("num_steps=many", "num_steps must be of type int, and 'many' is not"),
        ("num_steps=1.5", "num_steps must be of type int"),
        ("optim.muon_lr=fast", "optim.muon_lr must be of type float"),
        ("data.styles=noto", "data.styles must be of type tuple"),
        ("optim=1", "optim must be of type OptimConfig"),
        ("method.names.features=pixels", "features must be one of"),
        ("method.names.num_shown=0", "at least 1"),
        ("method.supervised=visible", "supervised must be one of"),
        ("batch_size=1", "batch_size at least 2"),
        ("num_steps=0", "num_steps must be at least 1"),
    ],
)
def test_mistakes_are_named(tiny_config: TrainingConfig, line: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        apply_overrides(tiny_config, [line])


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


def test_the_models_size_is_the_configs(tiny_config: TrainingConfig) -> None:
    built = tiny_config.model.build(300).to_dict()
    text, vision = built["text_config"], built["vision_config"]
    assert (text["vocab_size"], text["hidden_size"], text["intermediate_size"]) == (300, 48, 192)
    assert (vision["image_size"], vision["num_hidden_layers"]) == (56, 2)
    assert built["temperature_init_value"] == pytest.approx(0.07)


def test_a_variant_gives_the_familys_sizes() -> None:
    config = ModelConfig(variant="so400m14").build(vocab_size=500)
    assert (config.vision_config.hidden_size, config.text_config.num_hidden_layers) == (1152, 27)
    assert config.text_config.vocab_size == 500


def test_a_variant_lets_nothing_be_set_that_it_fixes() -> None:
    with pytest.raises(ValueError, match="fixes heads"):
        ModelConfig(variant="b14", heads=4)
    with pytest.raises(ValueError, match="no variant 'xl14'"):
        ModelConfig(variant="xl14")
