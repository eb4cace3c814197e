"""Tables of measured runs: verdicts agree with the numbers, and every variant has a row."""

from collections.abc import Callable
from pathlib import Path

import pytest

from training.__main__ import main
from training.reproduce.plan import EFFECTS, RECIPE, PlannedRun, ReproductionPlan
from training.reproduce.tables import render

Finish = Callable[[PlannedRun, float], None]


def tables_of(plan: ReproductionPlan, finish: Finish, shares: dict[str, list[float]]) -> str:
    runs = plan.all_runs([0, 1, 2])
    for run in runs:
        if run.seed < len(shares.get(run.variant, [])):
            finish(run, shares[run.variant][run.seed])
    return render(runs)


def row_of(text: str, *start: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(f"| {' | '.join(start)} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.parametrize(
    ("ibot", "verdict"),
    [
        ([0.40, 0.41, 0.39], "reproduced"),
        ([0.80, 0.81, 0.79], "the opposite"),
        ([0.58, 0.40, 0.20], "right sign in every seed"),
        ([0.70, 0.30, 0.50], "not reproduced"),
        ([0.40], "one seed only"),
        ([], "not run yet"),
    ],
)
def test_the_verdict_follows_the_seeds(
    ibot: list[float], verdict: str, plan: ReproductionPlan, finish: Finish
) -> None:
    text = tables_of(plan, finish, {RECIPE: [0.6, 0.6, 0.6], "ibot": ibot})
    row = row_of(text, "(a)", "iBOT++ over iBOT", "patches")
    assert verdict in row[-1].split("; ")


def test_no_difference_is_a_verdict(plan: ReproductionPlan, finish: Finish) -> None:
    text = tables_of(plan, finish, {RECIPE: [0.6, 0.6, 0.6], "full-ema": [0.62, 0.58, 0.6]})
    row = row_of(text, "(d)", "head-only against full", "patches")
    assert set(row[-1].split("; ")) <= {"no difference", "a difference"}
    assert "no difference" in row[-1]


def test_patch_losses_compare_the_first_and_last_log_rows(
    plan: ReproductionPlan, finish: Finish
) -> None:
    runs = plan.all_runs([0])
    run = next(run for run in runs if run.variant == "ibot")
    finish(run, 0.5)
    values = [5.0, 5.2, 5.4, 9.0, 4.0, 4.2, 4.4]
    lines = [f'{{"step": {i}, "patch_visible": {v}}}\n' for i, v in enumerate(values)]
    log = run.config.folder / "log.jsonl"
    log.write_text('{"step": 0, "loss": 1.0}\n' + "".join(lines), encoding="utf-8")
    assert row_of(render(runs), "ibot, seed 0", "visible")[2:] == ["5.20", "4.20", "-1.00"]


@pytest.mark.slow
def test_the_smoke_runs_every_variant_once(
    toy_plan: ReproductionPlan, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = ["--data", str(toy_plan.data), "--runs", str(toy_plan.runs)]
    command = ["reproduce", "--smoke", "--seeds", "0", *folders]
    assert main(command) == 0
    output = Path(toy_plan.runs) / "RESULTS.md"
    text = output.read_text(encoding="utf-8")
    assert "not run yet" not in text
    for effect in EFFECTS:
        for variant in effect.variants:
            assert len(row_of(text, variant, "patches")) == 7, variant
    capsys.readouterr()
    output.unlink()
    assert main(command) == 0
    assert "seed-0:" not in capsys.readouterr().out  # no run is made again
    assert output.read_text(encoding="utf-8") == text
