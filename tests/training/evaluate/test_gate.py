"""The gate: minimum values, maximum losses, and scores or rules that cannot be judged."""

import json
from pathlib import Path
from typing import Any

import pytest

from model.manifest import ScoreEntry
from model.scores.gate import Rule, judge
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


def test_a_missing_score_does_not_pass() -> None:
    other = rule(minimum=1).model_copy(update={"split": "seen style"})
    with pytest.raises(ValueError, match=r"'.*seen style .*' of 'student' was measured; correct"):
        judge([other], SCORES)
    alone = [entry for entry in SCORES if "served" not in entry.row]
    with pytest.raises(ValueError, match="'student - served' was measured; evaluate with --served"):
        judge([rule(max_loss=1)], alone)


@pytest.mark.parametrize(
    ("rules", "scores", "status", "said"),
    [
        # The value counts for a minimum, the end of the interval for a loss.
        ([f"{RULE}minimum = 38", f"{RULE}max_loss = 2"], SCORES, 0, ["passed", "passed"]),
        ([f"{RULE}minimum = 38.01", f"{RULE}max_loss = 2"], SCORES, 3, ["FAILED", "passed"]),
        ([f"{RULE}minimum = 38", f"{RULE}max_loss = 1.9"], SCORES, 3, ["passed", "FAILED"]),
        (["[[score]"], SCORES, 2, "gate.toml holds no valid rules"),
        ([RULE], SCORES, 2, "gate.toml holds no valid rules"),
        ([f"{RULE}minimun = 3"], SCORES, 2, "gate.toml holds no valid rules"),
        ([f"{RULE}minimum = 1"], [{}], 2, "holds no valid scores"),
        ([f"{RULE}minimum = 1"], None, 2, "scores.json"),
    ],
)
def test_a_failed_rule_has_its_own_exit_status(
    rules: list[str],
    scores: list[Any] | None,
    status: int,
    said: list[str] | str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if scores is not None:
        (tmp_path / "scores.json").write_text(json.dumps(scores, default=ScoreEntry.model_dump))
    (tmp_path / "gate.toml").write_text("\n".join(rules), encoding="utf-8")
    assert main(["gate", str(tmp_path), "--rules", str(tmp_path / "gate.toml")]) == status
    printed = capsys.readouterr()
    if isinstance(said, str):
        assert said in printed.err
    else:
        assert [line.split()[0] for line in printed.out.splitlines()] == said
        failed = "refused: 1 of 2 rules failed: zero-shot segmentation | seen"
        assert (failed if status else "") in printed.err
