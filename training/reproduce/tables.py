"""Markdown tables of measured runs: levels of all variants, paired differences, verdicts."""

import json
from collections.abc import Sequence
from pathlib import Path

from training.reproduce.plan import EFFECTS, Comparison, PlannedRun
from training.reproduce.results import METRICS, Cell, Results, SeedMean, verdict
from training.reproduce.runner import KINDS, LARGEST, PAINTED, RETRIEVAL, read_record

SCENES = {"seen": "seen styles", "unseen": "Fluent 3D, unseen style"}
PATCH_PARTS = ("visible", "masked")
_EDGE_ROWS = 3  # log rows that are averaged at the start and at the end of a run

_HEADER = """\
# Effects of TIPSv2 in miniature

{done} of {planned} planned runs are measured. Scores are in percent. Levels: mean ± standard
deviation over seeds. Differences: mean [95 % t-interval over seeds] (95 % interval over resampled
scenes) seeds above zero / seeds. "reproduced" means that the t-interval is above zero."""


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format rows as a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def render(runs: Sequence[PlannedRun]) -> str:
    """All tables of the runs that are measured so far."""
    results = Results(runs)
    planned = [run for run in runs if run.is_measured]
    done = [run for run in planned if read_record(run.config.folder) is not None]
    variants = list(dict.fromkeys(name for effect in EFFECTS for name in effect.variants))
    measured = [name for name in variants if results.seeds(name)]
    parts = [
        _HEADER.format(done=len(done), planned=len(planned)),
        "## Differences",
        markdown_table(["effect", "what", "row", *_columns(), "verdict"], _differences(results)),
        "## Levels",
        markdown_table(["run", "row", *_columns(), "seeds"], _levels(measured, results)),
        "## Retrieval, recall at 1",
        markdown_table(["run", "scenes", *RETRIEVAL], _retrieval(measured, results)),
        "## Patch loss on visible and on masked patches",
        markdown_table(["run", "patches", "first", "last", "change"], _patch_losses(planned)),
    ]
    return "\n\n".join(parts) + "\n"


def write_tables(runs: Sequence[PlannedRun], output: Path) -> None:
    """Write the tables to a file."""
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(render(runs), encoding="utf-8")


def verdict_text(pair: Comparison, differences: SeedMean) -> str:
    """The verdict on one score's paired differences."""
    if len(differences.values) < 2:
        return "one seed only"
    if pair.is_equality:
        return "no difference" if differences.low <= 0 <= differences.high else "a difference"
    return {
        "yes": "reproduced",
        "in sign only": "right sign in every seed",
        "no": "not reproduced",
        "the opposite": "the opposite",
    }[verdict(differences)]


def _cells(row: str) -> list[Cell]:
    return [Cell(scenes=scenes, row=row, metric=m) for m in METRICS for scenes in SCENES]


def _columns() -> list[str]:
    return [f"{cell.metric}, {SCENES[cell.scenes]}" for cell in _cells("")]


def _level(mean: SeedMean) -> str:
    return f"{mean.mean:.1f} ± {mean.spread:.1f}" if len(mean.values) > 1 else f"{mean.mean:.1f}"


def _interval(seeds: SeedMean) -> str:
    return f" [{seeds.low:+.1f}, {seeds.high:+.1f}]" if len(seeds.values) > 1 else ""


def _differences(results: Results) -> list[list[str]]:
    rows = []
    for effect in EFFECTS:
        for pair in effect.comparisons:
            for kind in KINDS:
                start = [f"({effect.letter})", pair.question, kind]
                if results.seeds(pair.better, pair.worse):
                    rows.append([*start, *_difference_cells(pair, kind, results)])
                else:
                    rows.append([*start, *("" for _ in _columns()), "not run yet"])
    return rows


def _difference_cells(pair: Comparison, kind: str, results: Results) -> list[str]:
    found = [results.difference(pair.better, pair.worse, cell) for cell in _cells(kind)]
    cells = [
        f"{one.seeds.mean:+.1f}{_interval(one.seeds)} ({one.low:+.1f}, {one.high:+.1f}) "
        f"{sum(value > 0 for value in one.seeds.values)}/{len(one.seeds.values)}"
        for one in found
    ]
    return [*cells, "; ".join(verdict_text(pair, one.seeds) for one in found)]


def _levels(variants: Sequence[str], results: Results) -> list[list[str]]:
    rows = []
    for name in variants:
        for row in (*KINDS, PAINTED):
            cells = [_level(results.level(name, cell)) for cell in _cells(row)]
            rows.append([name, row, *cells, str(len(results.seeds(name)))])
    for row in (LARGEST, "chance") if variants else ():  # independent of the model
        cells = [f"{results.level(variants[0], cell).mean:.1f}" for cell in _cells(row)]
        rows.append(["", row, *cells, ""])
    return rows


def _retrieval(variants: Sequence[str], results: Results) -> list[list[str]]:
    return [
        [name, title, *(_level(results.retrieval(name, scenes, way)) for way in RETRIEVAL)]
        for name in variants
        for scenes, title in SCENES.items()
    ]


def _patch_losses(runs: Sequence[PlannedRun]) -> list[list[str]]:
    """Mean loss of the first and last log rows: under iBOT it does not fall on visible patches."""
    rows = []
    for run in runs:
        if read_record(run.config.folder) is None:
            continue
        lines = (run.config.folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
        for part in PATCH_PARTS:
            values = [v for line in lines if (v := json.loads(line).get(f"patch_{part}"))]
            if values:
                first, last = (
                    sum(edge) / len(edge) for edge in (values[:_EDGE_ROWS], values[-_EDGE_ROWS:])
                )
                name = f"{run.variant}, seed {run.seed}"
                rows.append([name, part, f"{first:.2f}", f"{last:.2f}", f"{last - first:+.2f}"])
    return rows
