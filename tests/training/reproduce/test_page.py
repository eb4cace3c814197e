"""The page: verdicts, what they require, and the job that renders it."""

from pathlib import Path

import pytest

from tests.training.reproduce.conftest import SCALE, Finish
from training.__main__ import main
from training.data.folder import DataFolder
from training.reproduce.page import failed_checks, render, verdict
from training.reproduce.paper import ROWS
from training.reproduce.plan import HEAD_EMA, IBOT, IBOT_PP, START
from training.reproduce.results import Results

FIRST = ROWS[0]  # iBOT++ over iBOT
EQUAL = next(row for row in ROWS if row.pair is not None and row.pair.is_equality)


def fill(finish: Finish, better: list[float], *, painted: float = 35.0) -> None:
    for seed, value in enumerate(better):
        finish(START, seed, patches=20.0, painted=painted)
        finish(IBOT, seed, patches=20.0)
        finish(IBOT_PP, seed, patches=value)


@pytest.mark.parametrize(
    ("better", "expected"),
    [
        ([25.0, 26.0, 24.0], "reproduced"),
        ([15.0, 14.0, 16.0], "the opposite"),
        ([30.0, 15.0, 21.0], "not reproduced"),
        ([25.0, 26.0], "too few seeds"),
    ],
)
def test_a_row_is_judged_by_the_interval_over_seeds(
    results: Path, finish: Finish, better: list[float], expected: str
) -> None:
    fill(finish, better)
    assert verdict(FIRST, Results(results))[0] == expected


def test_an_equality_needs_a_narrow_interval_around_zero(results: Path, finish: Finish) -> None:
    fill(finish, [20.0, 21.0, 20.5])
    for seed in range(3):
        finish(HEAD_EMA, seed, patches=20.5)
    assert verdict(EQUAL, Results(results))[0] == "reproduced"
    finish(HEAD_EMA, 2, patches=24.0)
    assert verdict(EQUAL, Results(results))[0] == "not reproduced"


def test_without_the_defect_no_row_is_testable(results: Path, finish: Finish) -> None:
    fill(finish, [25.0, 26.0, 24.0], painted=29.0)
    assert "not above 30" in failed_checks(Results(results))[0]
    assert verdict(FIRST, Results(results))[0] == "not testable"
    fill(finish, [25.0, 26.0, 24.0])
    assert not failed_checks(Results(results))
    for seed in range(3):
        finish(IBOT, seed, patches=36.0)
    assert "no defect" in failed_checks(Results(results))[0]
    page = render(Results(results), SCALE)
    assert "It cannot: iBOT has no defect" in page


def test_the_job_renders_the_results_so_far(
    results: Path, finish: Finish, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(finish, [25.0, 26.0, 24.0])
    output = results.parent / "RESULTS.md"
    command = ["reproduce", "--smoke", "--report-only"]
    assert main([*command, "--results", str(results), "--output", str(output)]) == 0
    text = output.read_text(encoding="utf-8")
    assert str(output) in capsys.readouterr().out
    assert "+5.0 [+2.5, +7.5] | 3/3 | +5.0 [+2.5, +7.5] | reproduced |" in text
    assert "| not run yet |" in text
    assert "texts have fixed vectors | not testable |" in text
    assert "| 0 | 25 | 85 % | 4.00 to 1.00 | 35.0 |" in text


@pytest.mark.slow
def test_the_smoke_runs_every_arm_once(
    data_folder: DataFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = ["--data", str(data_folder.path), "--runs", str(tmp_path)]
    command = ["reproduce", "--smoke", "--seeds", "0", *folders]
    assert main(command) == 0
    assert "patches an object" in capsys.readouterr().out
    output = tmp_path / "RESULTS.md"
    text = output.read_text(encoding="utf-8")
    assert "not run yet" not in text
    output.unlink()
    assert main(command) == 0
    assert "seed 0" not in capsys.readouterr().out  # nothing is trained again
    assert output.read_text(encoding="utf-8") == text
