"""The page of effects: one verdict for each row of the paper, from the results so far."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from training.reproduce import plan
from training.reproduce.cells import NAMES
from training.reproduce.paper import FEATURES, ROWS, Pair, PaperRow
from training.reproduce.plan import Scale, arms
from training.reproduce.results import Results, SeedMean, Value, score
from training.reproduce.runner import CHANCE, LARGEST, PAINTED, PATCHES, VALUES

SCENES = {"seen": "seen styles", "unseen": "Fluent 3D, unseen style"}
# Below this mIoU of painted CLS1 there is nothing that patches could fail to localise.
MIN_PAINTED = 30.0
# An interval over fewer seeds says little.
MIN_SEEDS = 3
# Points of mIoU. An interval that merely contains zero would prove "as good as" by too few seeds.
EQUAL_WITHIN = 2.0
Verdict = Literal[
    "reproduced", "not reproduced", "the opposite", "not testable", "too few seeds", "not run yet"
]

_HEADER = """\
# The paper's effects in miniature

`python -m training reproduce` measures whether the effects of TIPSv2 (arXiv:2604.12012) appear in
small models: {layers} transformer blocks of width {width} on a grid of {grid} x {grid} cells of a
frozen EfficientNet-Lite0, with captions as fixed vectors of MiniLM. This page is written by
`--report-only --results training/reproduce/measured --output training/RESULTS.md` from one JSON
file for each arm and seed; a further run only adds files.

- Scenes: two or three large drawings of {names} names on textures or photos, {train} scenes for
  training, the same ones for all seeds. Candidates are the {names} names in nine prompts each.
- A seed begins with {start} steps of contrast alone (batch {batch}). From there every pretraining
  arm runs {pretrain} steps: the first {alone:.0%} train the prototype head alone, and the weight
  of the patch loss rises until {ramp:.0%}. Students have random weights, except with a warm
  start, and run {distill} steps. A teacher and its students have the same size. DINO is off.
  As in the paper's ablation, pretraining averages encoder and head unless an arm says otherwise;
  the trained encoder is measured, not its average.
- All arms of a seed see the same scenes in the same order, and arms from one start have the same
  weights, so differences are paired.
- The paper's numbers are zero-shot mIoU on ADE150 unless the row says another. Ours are points of
  mIoU of *{features}* on {sets} test scenes of the seen styles: mean difference [95 % t-interval
  over seeds], seeds above zero / seeds. The scenes of the unseen style are a second measurement,
  without a verdict.
- "reproduced": the interval is above zero, or, for "as good as", within {equal_within:g} points of
  it; "the opposite": it is below. "not testable": the miniature has no counterpart, or fails a
  check below. A verdict takes {min_seeds} seeds.
- *painted CLS1* gives every pixel the name that the same model gives the whole image. *largest
  object* takes the name of the largest object from the true masks. "which" is the share of object
  pixels whose name is right among the scene's own names."""

_CHECKS = """\
At the end of the contrast: patches of an object (median), share of validation scenes in which the
name nearest to CLS1 is shown, loss of CLS1 from the first to the last steps, and painted CLS1. For
the teachers: mutual information, in nats, of the targets of the patch loss with *object or
background*, and with the object's name, each of the label's entropy."""


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format rows as a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def interval(mean: SeedMean, *, sign: str = "") -> str:
    """Format a mean and its interval."""
    text = f"{mean.mean:{sign}.1f}"
    if len(mean.values) > 1:
        text += f" [{mean.low:{sign}.1f}, {mean.high:{sign}.1f}]"
    return text


def failed_checks(results: Results) -> list[str]:
    """Why the results so far cannot show the paper's effects; empty if they can."""
    if not results.seeds(plan.START) or not results.seeds(plan.IBOT):
        return ["the start or the iBOT arm has not run"]
    painted = results.level(plan.START, score(PAINTED)).mean
    failed = []
    if painted <= MIN_PAINTED:
        failed.append(
            f"contrast has not converged: painted CLS1 has mIoU {painted:.1f}, not above "
            f"{MIN_PAINTED:.0f}"
        )
    gap = results.within(plan.IBOT, score(FEATURES), score(PAINTED)).mean
    if gap >= 0:
        failed.append(f"iBOT has no defect: its patches are {gap:.1f} points above painted CLS1")
    return failed


def verdict(row: PaperRow, results: Results) -> tuple[Verdict, SeedMean | None]:
    """The verdict on a row, and the paired differences behind it."""
    pair = row.pair
    if pair is None:
        return "not testable", None
    if not results.seeds(pair.better, pair.worse):
        return "not run yet", None
    found = results.difference(pair.better, pair.worse, pair.value)
    if failed_checks(results):
        return "not testable", found
    if len(found.values) < MIN_SEEDS:
        return "too few seeds", found
    return _judge(pair, found), found


def _judge(pair: Pair, found: SeedMean) -> Verdict:
    if pair.is_equality:
        return (
            "reproduced"
            if -EQUAL_WITHIN < found.low <= found.high < EQUAL_WITHIN
            else "not reproduced"
        )
    if found.low > 0:
        return "reproduced"
    return "the opposite" if found.high < 0 else "not reproduced"


def _row(row: PaperRow, results: Results) -> list[str]:
    judged, found = verdict(row, results)
    ours, count, other = "", "", row.reason
    if found is not None and row.pair is not None:
        pair = row.pair
        above = sum(value > 0 for value in found.values)
        digits = interval(found, sign="+")
        ours = f"{digits} {'' if pair.unit == 'mIoU' else pair.unit}".strip()
        count = f"{above}/{len(found.values)}"
        unseen = results.difference(pair.better, pair.worse, score(FEATURES, scenes="unseen"))
        other = interval(unseen, sign="+") if pair.unit == "mIoU" else ""
    return [row.table, row.claim, row.numbers, ours, count, other, judged]


def _checks(results: Results) -> list[list[str]]:
    """The numbers that decide whether a run can show anything, for each seed."""
    rows = []
    for seed in results.seeds(plan.START):
        start = results.one(plan.START, seed)
        fall = start["losses"]["cls1"]
        cells = [
            str(seed),
            f"{start['patches']:.0f}",
            f"{start['naming']:.0f} %",
            f"{fall[0]:.2f} to {fall[1]:.2f}",
            f"{score(PAINTED)(start):.1f}",
        ]
        for arm in plan.TEACHERS:
            known = results.one(arm, seed) if results.seeds(arm).count(seed) else None
            cells.append(_information(known))
        rows.append(cells)
    return rows


def _information(result: dict[str, Any] | None) -> str:
    if result is None or result["information"] is None:
        return ""
    found = result["information"]
    return (
        f"{found['object']:.2f} of {found['object bound']:.2f}; "
        f"{found['name']:.2f} of {found['name bound']:.2f}"
    )


def _levels(names: Sequence[str], results: Results) -> list[list[str]]:
    rows = []
    for name in names:
        cells = [
            interval(results.level(name, score(row, scenes=scenes, metric=metric)))
            for scenes in SCENES
            for row, metric in (
                (PATCHES, "mIoU"),
                (VALUES, "mIoU"),
                (PAINTED, "mIoU"),
                (PATCHES, "which"),
                (VALUES, "which"),
            )
        ]
        rows.append([name, *cells, str(len(results.seeds(name)))])
    for name in (LARGEST, CHANCE) if names else ():
        known = [
            f"{results.level(names[0], score(name, scenes=scenes, metric=metric)).mean:.1f}"
            for scenes in SCENES
            for metric in ("mIoU", "mIoU", "mIoU", "which", "which")
        ]
        rows.append([f"*{name}*", *known, ""])
    return rows


def _loss(name: str, edge: int) -> Value:
    return lambda result: float(result["losses"].get(name, [float("nan")] * 2)[edge])


def _losses(names: Sequence[str], results: Results) -> list[list[str]]:
    rows = []
    for name in names:
        cells = []
        for loss in ("cls1", "patch_visible", "patch_masked"):
            edges = [results.level(name, _loss(loss, edge)).mean for edge in (0, 1)]
            known = not any(math.isnan(value) for value in edges)
            cells.append(f"{edges[0]:.2f} to {edges[1]:.2f}" if known else "")
        rows.append([name, *cells])
    return rows


def render(results: Results, scale: Scale) -> str:
    """The whole page."""
    names = [arm.name for part in arms(scale) for arm in part if results.seeds(arm.name)]
    failed = failed_checks(results)
    columns = ["patches", "values", "painted CLS1", "which, patches", "which, values"]
    parts = [
        _HEADER.format(
            layers=scale.layers,
            width=scale.width,
            grid=scale.cells.grid,
            names=len(NAMES),
            train=scale.cells.num_train,
            start=scale.start_steps,
            batch=scale.batch_size,
            pretrain=scale.pretrain_steps,
            alone=scale.head_alone,
            ramp=scale.ramp,
            distill=scale.distill_steps,
            features=FEATURES,
            sets=scale.cells.num_test,
            min_seeds=MIN_SEEDS,
            equal_within=EQUAL_WITHIN,
        ),
        "## Rows of the paper",
        markdown_table(
            ["table", "claim", "the paper", "here", "seeds", SCENES["unseen"], "verdict"],
            [_row(row, results) for row in ROWS],
        ),
        "## Whether the run can show anything",
        "It can: contrast has converged, and iBOT has the defect."
        if not failed
        else "It cannot: " + "; ".join(failed) + ".",
        _CHECKS,
        markdown_table(
            ["seed", "patches", "named", "CLS1 loss", "painted CLS1", *plan.TEACHERS],
            _checks(results),
        ),
        "## Levels",
        'mIoU, and "which", in percent: on the seen styles, then on Fluent 3D.',
        markdown_table(
            ["arm", *columns, *(f"{c}, Fluent" for c in columns), "seeds"],
            _levels(names, results),
        ),
        "## Losses",
        "First to last steps. A student's targets are constant; in pretraining they change.",
        markdown_table(
            ["arm", "CLS1", "visible patches", "masked patches"], _losses(names, results)
        ),
    ]
    return "\n\n".join(parts) + "\n"


def write_page(folder: Path, scale: Scale, output: Path) -> None:
    """Write the page of the results in a folder."""
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(render(Results(folder), scale), encoding="utf-8")


def describe_result(result: dict[str, Any]) -> str:
    """A finished arm in three lines, with the numbers that say whether it can show anything."""
    seen = result["scores"]["seen"]
    scores = ", ".join(f"{name} {s['mIoU']:.1f}/{s['which']:.1f}" for name, s in seen.items())
    told = _information(result)
    return (
        f"seed {result['seed']}, {result['arm']}: {result['cpu_s']} s\n"
        f"  mIoU/which: {scores}\n"
        f"  {result['patches']:.0f} patches an object; {result['naming']:.0f} % named; losses "
        f"{result['losses']}" + (f"; targets about object; name: {told} nats" if told else "")
    )
