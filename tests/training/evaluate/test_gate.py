"""The gate: minimum values, maximum losses, and scores or rules that cannot be judged."""

from pathlib import Path

import pytest
from pydantic import TypeAdapter

from model.manifest import ScoreEntry
from model.scores.gate import Rule, judge, read_rules
from training.__main__ import main

TASK, SPLIT = "zero-shot segmentation", "seen styles, 50 everyday names"
RULE = f'[[score]]\ntask = "{TASK}"\nsplit = "{SPLIT}"\nmetric = "mIoU"\n'


def score(row: str, value: float, low: float | None = None) -> ScoreEntry:
    high = None if low is None else 2 * value - low
    return ScoreEntry(
        task=TASK, split=SPLIT, row=row, metric="mIoU", value=value, low=low, high=high, count=500
    )


SCORES = [
    score("student", 38.0, 36.0),
    score("served", 39.0, 37.0),
    score("student - served", -1.0, -2.0),
    score("chance", 1.0),
]


def rule(**demands: float) -> Rule:
    return Rule.model_validate({"task": TASK, "split": SPLIT, "metric": "mIoU", **demands})


@pytest.mark.parametrize(
    ("demand", "passes"),
    [
        ({"minimum": 38.0}, True),
        ({"minimum": 38.01}, False),
        ({"max_loss": 2.0}, True),
        ({"max_loss": 1.9}, False),
    ],
)
def test_a_demand_is_judged_by_the_value_or_the_end_of_the_interval(
    demand: dict[str, float], passes: bool
) -> None:
    (verdict,) = judge([rule(**demand)], SCORES)
    assert verdict.passed is passes


def test_a_missing_score_does_not_pass() -> None:
    other = rule(minimum=1).model_copy(update={"split": "seen style"})
    with pytest.raises(ValueError, match=r"'.*seen style .*' of 'student' was measured; correct"):
        judge([other], SCORES)
    alone = [entry for entry in SCORES if "served" not in entry.row]
    with pytest.raises(ValueError, match="'student - served' was measured; evaluate with --served"):
        judge([rule(max_loss=1)], alone)


@pytest.mark.parametrize(
    "text",
    [
        "[[score]\n",
        RULE,
        f"{RULE}minimun = 3\n",
    ],
)
def test_rules_without_a_valid_demand_are_an_error(text: str, tmp_path: Path) -> None:
    path = tmp_path / "gate.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"gate.toml holds no valid rules"):
        read_rules(path)


def call(tmp_path: Path, *demands: str) -> int:
    (tmp_path / "scores.json").write_bytes(TypeAdapter(list[ScoreEntry]).dump_json(SCORES))
    rules = tmp_path / "gate.toml"
    rules.write_text("\n".join(f"{RULE}{demand}" for demand in demands), encoding="utf-8")
    return main(["gate", str(tmp_path), "--rules", str(rules)])


def test_a_failed_rule_has_its_own_exit_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(tmp_path, "minimum = 30", "max_loss = 2") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["passed"] * 2
    assert call(tmp_path, "minimum = 30", "max_loss = 1") == 3
    said = capsys.readouterr()
    assert [line.split()[0] for line in said.out.splitlines()] == ["passed", "FAILED"]
    assert said.err.startswith("refused: 1 of 2 rules failed: zero-shot segmentation | seen")


def test_errors_have_another_exit_status_than_failed_rules(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(tmp_path, "maximum = 30") == 2
    assert "holds no valid rules" in capsys.readouterr().err
    (tmp_path / "scores.json").write_text("[{}]", encoding="utf-8")
    good = tmp_path / "good.toml"
    good.write_text(f"{RULE}minimum = 1\n", encoding="utf-8")
    assert main(["gate", str(tmp_path), "--rules", str(good)]) == 2
    assert "holds no valid scores" in capsys.readouterr().err
    assert main(["gate", str(tmp_path / "nowhere"), "--rules", str(good)]) == 2
