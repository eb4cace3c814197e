"""What the page says of an effect: tables of every seed, and a verdict that follows the numbers."""

from collections.abc import Callable

import pytest

from training.reproduce.plan import EFFECTS, RECIPE, STUDENT, Effect, Plan, PlannedRun
from training.reproduce.report import effect_section, painted_section, table
from training.reproduce.results import Results

Finish = Callable[[PlannedRun, float], None]


def results_of(plan: Plan, finish: Finish, shares: dict[str, list[float]]) -> Results:
    runs = plan.all_runs([0, 1, 2])
    for run in runs:
        if run.seed < len(shares.get(run.variant, [])):
            finish(run, shares[run.variant][run.seed])
    return Results(runs)


def verdict_line(section: str, question: str) -> str:
    return next(line for line in section.splitlines() if line.startswith(f"- **{question}**"))


def test_a_table_is_markdown() -> None:
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


@pytest.mark.parametrize(
    ("ibot", "said"),
    [
        ([0.40, 0.41, 0.39], "reproduced"),
        ([0.80, 0.81, 0.79], "the opposite"),
        ([0.58, 0.40, 0.20], "right in every seed, interval not above zero"),
        ([0.70, 0.30, 0.50], "not reproduced"),
        ([0.40], "one seed says nothing"),
        ([], "not run yet"),
    ],
)
def test_the_verdict_follows_the_seeds(
    ibot: list[float], said: str, plan: Plan, finish: Finish
) -> None:
    results = results_of(plan, finish, {RECIPE: [0.6, 0.6, 0.6], "ibot": ibot})
    line = verdict_line(effect_section(EFFECTS[0], results, "patches"), "iBOT++ over iBOT")
    assert said in line


def test_an_equality_is_judged_as_one(plan: Plan, finish: Finish) -> None:
    full = [0.62, 0.58, 0.6]
    results = results_of(plan, finish, {RECIPE: [0.6, 0.6, 0.6], "full-ema": full})
    line = verdict_line(effect_section(EFFECTS[3], results, "patches"), "head-only against full")
    assert "no difference seen" in line
    assert "reproduced" not in line


def test_painted_and_largest_stand_beside_every_level(plan: Plan, finish: Finish) -> None:
    results = results_of(plan, finish, {RECIPE: [0.6, 0.6], STUDENT: [0.7, 0.7]})
    for effect in EFFECTS:
        section = effect_section(effect, results, "patches")
        assert section.count("| *largest object* |") == 2, effect.letter
        assert section.count("| *chance* |") == 2
        assert "mIoU, painted CLS1" in section
        assert "which, values" in section
        assert " / " in section.split("Every seed:")[1]  # both seeds, one by one


def test_retrieval_is_shown_where_captions_differ(plan: Plan, finish: Finish) -> None:
    results = results_of(plan, finish, {RECIPE: [0.6, 0.6], "one-caption": [0.6, 0.6]})
    assert "long text to image" in effect_section(EFFECTS[4], results, "patches")
    assert "long text to image" not in effect_section(EFFECTS[0], results, "patches")


def test_nothing_measured_is_said(plan: Plan) -> None:
    section = effect_section(EFFECTS[1], Results(plan.all_runs([0])), "patches")
    assert section.count("not run yet") == len(EFFECTS[1].comparisons) + 1


def test_patches_are_held_against_the_models_own_paint(plan: Plan, finish: Finish) -> None:
    results = results_of(plan, finish, {RECIPE: [0.6, 0.6]})
    section = painted_section(results, [RECIPE, STUDENT])
    assert section.count(f"| {RECIPE} |") == 2
    assert STUDENT not in section


@pytest.mark.parametrize("effect", EFFECTS, ids=[effect.letter for effect in EFFECTS])
def test_every_comparison_has_two_sides(effect: Effect) -> None:
    assert all(pair.better != pair.worse for pair in effect.comparisons)
