"""The page on recipes names settings that exist, with the defaults that the recipes have."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from training.captioning.gemini_config import GeminiConfig
from training.recipes.scale import SCALE_RECIPES, student_l14, teacher_g14

CODE = re.compile(r"`([^`]+)`")
ROOTS: dict[str, tuple[Any, ...]] = {"GeminiConfig": (GeminiConfig(),)}


@pytest.fixture(scope="module")
def page(project_root: Path) -> str:
    """The page."""
    return (project_root / "training/recipes/README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def unknowns(page: str) -> list[list[str]]:
    """The rows of the table of what is not published."""
    _, _, after = page.partition("| unknown | setting | default | reason |\n")
    rows = [line for line in after.splitlines()[1:] if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def values_of(setting: str) -> list[Any]:
    """What the configurations that have a setting set it to: the teacher's, the student's."""
    first, _, rest = setting.partition(".")
    found, names = [], rest.split(".") if first in ROOTS else setting.split(".")
    for value in ROOTS.get(first, (teacher_g14(), student_l14())):
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


def test_every_setting_exists_and_has_the_default_that_is_shown(unknowns: list[list[str]]) -> None:
    assert len(unknowns) > 20
    for unknown, setting, default, reason in unknowns:
        names, defaults = CODE.findall(setting), CODE.findall(default)
        assert names, unknown
        assert reason, unknown
        assert len(defaults) in (0, len(names)), unknown
        for name in names:
            assert values_of(name), f"{unknown}: no setting {name}"
        for name, expected in zip(names, defaults, strict=False):
            assert shown(values_of(name)[0]) == expected, name


def test_no_setting_stands_there_twice(unknowns: list[list[str]]) -> None:
    names = [name for row in unknowns for name in CODE.findall(row[1])]
    assert len(names) == len(set(names))


def test_a_setting_that_does_not_exist_is_noticed() -> None:
    assert values_of("method.head.num_prototypes") == [32_768, 32_768]
    assert not values_of("method.head.colour")
    assert not values_of("GeminiConfig.colour")


def test_the_table_of_costs_has_every_recipe(page: str) -> None:
    assert "python -m training cost" in page
    for name in SCALE_RECIPES:
        assert page.count(f"\n| {name} |") == 2, name
