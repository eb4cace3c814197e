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
from training.data.loader import Curriculum
from training.methods.distill import DistillConfig
from training.methods.pretrain import PretrainConfig
from training.recipes import bundled, first_light
from training.recipes.scale import SCALE_RECIPES, TEACHER


def test_students_and_their_teachers_fit_together() -> None:
    first, student = first_light.first_student(), bundled.student()
    assert isinstance(student.method, DistillConfig)
    assert student.teacher == first.folder
    # The text tower is copied, and the released form has no prototype head.
    assert student.model == first.model
    assert (student.method.text_start, student.method.patch_loss) == ("teacher", "features")
    assert (student.method.mask_ratio, student.method.supervised) == (0.0, "all")
    teacher, student = first_light.teacher(), first_light.first_student()
    assert isinstance(teacher.method, PretrainConfig)
    assert isinstance(student.method, DistillConfig)
    assert student.teacher == teacher.folder
    assert student.method.head == teacher.method.head
    assert student.method.patch_from < student.method.patch_until
    assert student.model == teacher.model


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
    curriculum = Curriculum(stages=config.data.stages)
    assert curriculum.stage_at(config.num_steps - 1, config.num_steps) is config.data.stages[-1]
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


def test_the_table_of_costs_has_every_recipe(page: str) -> None:
    assert "python -m training cost" in page
    for name in SCALE_RECIPES:
        assert page.count(f"\n| {name} |") == 1, name
