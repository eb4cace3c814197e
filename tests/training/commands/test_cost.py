"""`python -m training cost`: tables of estimates, and errors in one line."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from tests.training.conftest import TINY_HEAD, TINY_MODEL
from training.__main__ import main
from training.commands import cost
from training.config import TrainingConfig
from training.methods.space import SpaceConfig
from training.recipes.scale import SCALE_RECIPES


@pytest.mark.slow
def test_both_tables_have_a_row_for_each_recipe(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    TINY_MODEL.build(300).save_pretrained(tmp_path)

    def shrunken(name: str) -> TrainingConfig:
        config = SCALE_RECIPES[name]()
        teacher = tmp_path if config.teacher else None
        assert not isinstance(config.method, SpaceConfig)
        method = replace(config.method, head=TINY_HEAD)
        return replace(config, model=TINY_MODEL, method=method, teacher=teacher)

    recipes = {name: partial(shrunken, name) for name in ("teacher-g14", "student-s14")}
    monkeypatch.setattr(cost, "SCALE_RECIPES", recipes)
    assert main(["cost", "--recipe", "student-s14", "teacher-g14", "--gpus", "8"]) == 0
    printed = capsys.readouterr().out
    lines = [line.split(" | ") for line in printed.splitlines() if line.startswith("|")]
    rows = [line for line in lines if not line[0].startswith(("| recipe", "| ---"))]
    assert [row[0] for row in rows] == 2 * ["| student-s14", "| teacher-g14"]
    student = dict(zip(lines[4], rows[2], strict=True))
    assert student["images a GPU"] == str(8192 // 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "teacher"], "unknown recipe 'teacher'"),
        (["--device", "b200"], "unknown device 'b200'"),
        (["--gpus", "0"], "at least one device is needed"),
        (["--mfu", "40"], "a share of the peak"),
    ],
)
def test_a_wrong_option_is_reported_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cost", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
