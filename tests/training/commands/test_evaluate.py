"""`python -m training evaluate`: all scores, and a checkpoint."""

from pathlib import Path

import pytest

from model.manifest import ScoreEntry
from training.__main__ import main
from training.commands import evaluate as evaluate_command
from training.data.folder import DataFolder
from training.scored_checkpoint import ScoredRuns

ENTRY = ScoreEntry(
    task="t", split="seen", row="student", metric="mIoU", value=12.5, low=11, high=14, count=9
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder with the files that `evaluate` expects of a finished run."""
    folder = tmp_path / "run"
    (folder / "model").mkdir(parents=True)
    (folder / "model/config.json").write_text("{}", encoding="utf-8")
    return folder


def test_options_reach_the_evaluation_and_every_score_is_printed(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chance = ENTRY.model_copy(update={"row": "chance", "value": 1.0, "low": None, "high": None})

    def write(
        runs: ScoredRuns, *, data: DataFolder, card: Path, output: Path, num_scenes: int
    ) -> list[ScoreEntry]:
        assert (runs.student, runs.teacher) == (run, run)
        assert (list(runs.further), runs.served) == ([run, run], run)
        assert (data.path, card.name, output, num_scenes) == (Path("d"), "c.md", Path("o"), 9)
        return [ENTRY, chance]

    monkeypatch.setattr(evaluate_command, "write_scored_checkpoint", write)
    arguments = ["--also", str(run), str(run), "--teacher", str(run), "--output", "o"]
    arguments += ["--scenes", "9", "--card", "c.md", "--data", "d", "--served", str(run)]
    assert main(["evaluate", str(run), *arguments]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "t | seen | student | mIoU | 12.50 [11.00, 14.00] | n 9",
        "t | seen | chance | mIoU | 1.00 | n 9",
    ]
