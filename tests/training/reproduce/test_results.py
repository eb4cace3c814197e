"""Levels and paired differences out of what runs left behind."""

from collections.abc import Callable

import pytest

from training.reproduce.plan import RECIPE, PlannedRun, ReproductionPlan
from training.reproduce.results import Cell, Results

Finish = Callable[[PlannedRun, float], None]
SEEN = Cell(scenes="seen", row="patches", metric="which")


@pytest.fixture
def runs(plan: ReproductionPlan, finish: Finish) -> list[PlannedRun]:
    """Three seeds: iBOT++ hits 60, 62 and 64 % of the pixels, iBOT 50 % and not in the last."""
    runs = plan.all_runs([0, 1, 2])
    for run in runs:
        if run.variant == RECIPE:
            finish(run, 0.6 + 0.02 * run.seed)
        elif run.variant == "ibot" and run.seed < 2:
            finish(run, 0.5)
    return runs


def test_levels_are_over_seeds(runs: list[PlannedRun]) -> None:
    results = Results(runs)
    level = results.level(RECIPE, SEEN)
    assert results.seeds(RECIPE) == [0, 1, 2]
    assert len(level.values) == 3
    assert level.mean == pytest.approx(62.0, abs=2.0)


def test_differences_are_paired_and_need_both(runs: list[PlannedRun]) -> None:
    results = Results(runs)
    found = results.difference(RECIPE, "ibot", SEEN)
    assert results.seeds(RECIPE, "ibot") == [0, 1]
    own, other = results.level(RECIPE, SEEN), results.level("ibot", SEEN)
    expected = [own.values[seed] - other.values[seed] for seed in (0, 1)]
    assert found.seeds.values == pytest.approx(expected)
    assert found.low <= found.seeds.mean <= found.high


def test_swapped_differences_change_sign(runs: list[PlannedRun]) -> None:
    results = Results(runs)
    there = results.difference(RECIPE, "ibot", SEEN)
    back = results.difference("ibot", RECIPE, SEEN)
    assert back.seeds.mean == pytest.approx(-there.seeds.mean)
    assert (back.low, back.high) == pytest.approx((-there.high, -there.low))


def test_chance_needs_no_model(runs: list[PlannedRun]) -> None:
    cell = Cell(scenes="seen", row="chance", metric="which")
    assert Results(runs).level(RECIPE, cell).mean == pytest.approx(50.0)


def test_retrieval_is_in_percent(runs: list[PlannedRun]) -> None:
    results = Results(runs)
    assert results.retrieval(RECIPE, "seen", "short text to image").mean == pytest.approx(50.0)
