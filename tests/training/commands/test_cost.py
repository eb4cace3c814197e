"""`python -m training cost`: tables of estimates that say so, and clear mistakes."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from training.__main__ import main
from training.commands import cost
from training.config import ModelConfig, TrainingConfig
from training.heads import HeadConfig
from training.recipes.scale import SCALE_RECIPES

TINY = ModelConfig(dim=16, vision_layers=2, text_layers=2, heads=2, native_size=56, vocab_size=300)
HEAD = HeadConfig(layers=2, hidden=24, bottleneck=8, num_prototypes=20)


@pytest.fixture
def tiny_recipes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The command's recipes, with models and a teacher that are counted in no time."""
    TINY.build(300).save_pretrained(tmp_path)

    def shrunken(name: str) -> TrainingConfig:
        config = SCALE_RECIPES[name]()
        teacher = tmp_path if config.teacher else None
        method = replace(config.method, head=HEAD)
        return replace(config, model=TINY, method=method, teacher=teacher)

    recipes = {name: partial(shrunken, name) for name in ("teacher-g14", "student-s14")}
    monkeypatch.setattr(cost, "SCALE_RECIPES", recipes)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|\n").split("|")]


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_recipes")
def test_both_tables_have_a_row_for_each_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--device", "a100", "--gpus", "8", "--mfu", "0.3"]
    assert main(["cost", "--recipe", "student-s14", "teacher-g14", *arguments]) == 0
    printed = capsys.readouterr().out
    lines = [cells(line) for line in printed.splitlines() if line.startswith("|")]
    titles = [line for line in lines if line[0] == "recipe"]
    assert titles[0][-2:] == ["GPU hours", "hours"]
    assert {"EMA", "optimizer", "fit at once"} <= set(titles[1])
    names = [line[0] for line in lines if line[0] not in ("recipe", "---")]
    assert names == 2 * ["student-s14", "teacher-g14"]
    assert len({len(line) for line in lines}) == 2
    student = dict(zip(titles[1], lines[6], strict=True))
    assert student["recipe"] == "student-s14"
    assert student["images a GPU"] == str(8192 // 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "teacher"], "unknown recipe 'teacher': choose one of teacher-g14, "),
        (["--device", "b200"], "unknown device 'b200': choose one of a100, h100, "),
        (["--gpus", "0"], "at least one device is needed"),
        (["--mfu", "40"], "a share of the peak"),
    ],
)
def test_mistakes_are_reported_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cost", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
