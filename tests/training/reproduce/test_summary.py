"""The first table: a line for each comparison, its verdict counted from the numbers."""

from collections.abc import Callable

from training.reproduce.plan import EFFECTS, RECIPE, Plan, PlannedRun
from training.reproduce.results import Results
from training.reproduce.summary import summary_section

Finish = Callable[[PlannedRun, float], None]


def line_of(section: str, question: str) -> list[str]:
    line = next(line for line in section.splitlines() if f"| {question} |" in line)
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_clear_gain_is_reproduced_in_all_four_scores(plan: Plan, finish: Finish) -> None:
    runs = plan.all_runs([0, 1, 2])
    for run in runs:
        if run.variant == RECIPE:
            finish(run, 0.8)
        elif run.variant == "ibot":
            finish(run, 0.3)
    cells = line_of(summary_section(Results(runs), "patches"), "iBOT++ over iBOT")
    assert cells[0] == "(a)"
    assert cells[-1] == "reproduced in 4 of 4"
    assert all(cell.startswith("+") and cell.endswith("3/3") for cell in cells[2:-1])


def test_one_seed_has_no_interval(plan: Plan, finish: Finish) -> None:
    runs = plan.all_runs([0])
    for run in runs:
        if run.variant in (RECIPE, "ibot"):
            finish(run, 0.5)
    cells = line_of(summary_section(Results(runs), "patches"), "iBOT++ over iBOT")
    assert cells[-1] == "one seed says nothing in 4 of 4"
    assert "[" not in "".join(cells)


def test_every_comparison_is_there_before_anything_is_run(plan: Plan) -> None:
    section = summary_section(Results(plan.all_runs([0])), "patches")
    count = sum(len(effect.comparisons) for effect in EFFECTS)
    assert section.count("not run yet") == count
