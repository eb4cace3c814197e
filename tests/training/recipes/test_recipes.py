"""All recipes are complete configurations that fit together; their page agrees with them."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from training.captioning.gemini_config import GeminiConfig
from training.commands.train import RECIPES
from training.config import DataConfig, TrainingConfig
from training.data.folder import TRAIN_STYLES
from training.recipes.scale import SCALE_RECIPES, TEACHER

OF_SCENES = {
    name: recipe
    for name, recipe in RECIPES.items()
    if name not in (*SCALE_RECIPES, "photo-student")
}


@pytest.mark.parametrize("recipe", OF_SCENES.values(), ids=OF_SCENES.keys())
def test_a_recipe_is_a_whole_configuration(recipe: Callable[[], TrainingConfig]) -> None:
    config = recipe()
    assert recipe() == config
    assert recipe.__doc__
    assert isinstance(config.data, DataConfig)
    assert set(config.data.styles) <= set(TRAIN_STYLES)
    assert config.data.stage_at(config.num_steps - 1, config.num_steps) is config.data.stages[-1]
    for stage in config.data.stages:
        assert stage.scenes.size % 14 == 0


CODE = re.compile(r"`([^`]+)`")
ROOTS: dict[str, list[Any]] = {"GeminiConfig": [GeminiConfig()]}


@pytest.fixture(scope="module")
def page(project_root: Path) -> str:
    """The page."""
    return (project_root / "training/recipes/README.md").read_text(encoding="utf-8")


def values_of(setting: str) -> list[Any]:
    """Values of a setting in the configurations that have it: the teacher's, the student's."""
    first, _, rest = setting.partition(".")
    found, names = [], rest.split(".") if first in ROOTS else setting.split(".")
    for value in ROOTS.get(first, [SCALE_RECIPES[name]() for name in (TEACHER, "student-l14")]):
        for name in names:
            fields = {item.name for item in dataclasses.fields(value)}
            if name not in fields:
                break
            value = getattr(value, name)  # noqa: PLW2901
        else:
            found.append(value)
    return found


def shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def test_every_setting_of_the_page_exists_and_has_the_shown_default(page: str) -> None:
    _, _, after = page.partition("| unknown | setting | default | reason |\n")
    rows = [line.strip("|").split("|") for line in after.splitlines()[1:] if line.startswith("|")]
    assert len(rows) > 20
    for unknown, setting, default, reason in rows:
        names, defaults = CODE.findall(setting), CODE.findall(default)
        assert names, unknown
        assert reason.strip(), unknown
        assert len(defaults) in (0, len(names)), unknown
        for name in names:
            assert values_of(name), f"{unknown}: no setting {name}"
        for name, expected in zip(names, defaults, strict=False):
            assert shown(values_of(name)[0]) == expected, name
