"""The fall of the patch loss is read from the logs of finished runs."""

import json
from collections.abc import Callable

import pytest

from training.reproduce.mechanism import falls
from training.reproduce.plan import Plan, PlannedRun

Finish = Callable[[PlannedRun, float], None]


def test_first_and_last_lines_are_compared(plan: Plan, finish: Finish) -> None:
    runs = plan.all_runs([0, 1])
    for run in runs:
        if run.variant == "ibot":
            finish(run, 0.5)
            visible = [5.0, 5.2, 5.4, 9.0, 4.0, 4.2, 4.4 + run.seed]
            rows = [{"step": i, "patch_visible": v, "loss": 1.0} for i, v in enumerate(visible)]
            text = "".join(json.dumps(row) + "\n" for row in [{"step": 0, "loss": 2.0}, *rows])
            (run.config.folder / "log.jsonl").write_text(text, encoding="utf-8")
        elif run.variant == "contrastive":
            finish(run, 0.5)
    (fall,) = falls(runs)
    assert (fall.variant, fall.part) == ("ibot", "visible")
    assert fall.first.values == pytest.approx((5.2, 5.2))
    assert fall.last.values == pytest.approx((4.2, 4.2 + 1 / 3))
    assert fall.change.mean == pytest.approx(-1.0 + 1 / 6)


def test_unfinished_runs_are_left_out(plan: Plan) -> None:
    assert falls(plan.all_runs([0])) == []
