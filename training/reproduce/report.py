"""Writes RESULTS.md: for each effect its levels, paired differences, seeds and a plain verdict."""

from collections.abc import Sequence

from training.reproduce.plan import Comparison, Effect
from training.reproduce.results import METRICS, Cell, Difference, Results, SeedMean, verdict
from training.reproduce.runner import KINDS, LARGEST, PAINTED, RETRIEVAL

SCENES = {"seen": "seen styles", "unseen": "Fluent 3D, unseen style"}
MISSING = "not run yet"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def effect_section(effect: Effect, results: Results, kind: str) -> str:
    """One effect: what the paper says, tables, and whether it is seen here.

    Args:
        effect: The claim.
        results: What is measured.
        kind: Patches or values, whichever the verdict goes by.
    """
    known = [name for name in effect.variants if results.seeds(name)]
    parts = [f"## ({effect.letter}) {effect.title}", f"The paper: {effect.claim}"]
    parts += [_sentence(pair, results, kind) for pair in effect.comparisons]
    if not known:
        return "\n\n".join([*parts, f"{MISSING}."])
    for scenes, title in SCENES.items():
        parts += [f"Levels, {title}:", _levels(known, results, scenes)]
    parts += ["Paired differences:", _differences(effect.comparisons, results)]
    if effect.with_retrieval:
        parts += ["Recall at 1, percent:", _retrieval_levels(known, results)]
        parts += ["Its paired differences:", _retrieval_differences(effect.comparisons, results)]
    parts += ["Every seed:", _seeds(known, results)]
    return "\n\n".join(parts)


def _cells(scenes: str) -> list[Cell]:
    return [Cell(scenes=scenes, row=row, metric=m) for m in METRICS for row in (*KINDS, PAINTED)]


def _heading(cell: Cell) -> str:
    return f"{cell.metric}, {cell.row}"


def _level(mean: SeedMean) -> str:
    return f"{mean.mean:.1f} ± {mean.spread:.1f}" if len(mean.values) > 1 else f"{mean.mean:.1f}"


def _levels(variants: Sequence[str], results: Results, scenes: str) -> str:
    cells = _cells(scenes)
    rows = [
        [
            name,
            *(_level(results.level(name, cell)) for cell in cells),
            str(len(results.seeds(name))),
        ]
        for name in variants
    ]
    for row in (LARGEST, "chance"):
        fixed = {
            metric: results.level(variants[0], Cell(scenes=scenes, row=row, metric=metric)).mean
            for metric in METRICS
        }
        rows.append([f"*{row}*", *(f"{fixed[cell.metric]:.1f}" for cell in cells), ""])
    return table(["run", *map(_heading, cells), "seeds"], rows)


def _difference(difference: Difference) -> str:
    """Mean, t-interval over seeds, scene bootstrap, and how many seeds are above zero."""
    seeds = difference.seeds
    count = sum(value > 0 for value in seeds.values)
    ends = f"[{seeds.low:+.1f}, {seeds.high:+.1f}]" if len(seeds.values) > 1 else "[one seed]"
    drawn = f"({difference.low:+.1f}, {difference.high:+.1f})"
    return f"{seeds.mean:+.1f} {ends} {drawn} {count}/{len(seeds.values)}"


def _differences(comparisons: Sequence[Comparison], results: Results) -> str:
    cells = [Cell(scenes="", row=row, metric=metric) for metric in METRICS for row in KINDS]
    rows = []
    for pair in comparisons:
        if not results.seeds(pair.better, pair.worse):
            continue
        for scenes, title in SCENES.items():
            row = [pair.question, title]
            for cell in cells:
                here = Cell(scenes=scenes, row=cell.row, metric=cell.metric)
                row.append(_difference(results.difference(pair.better, pair.worse, here)))
            rows.append(row)
    return table(["what", "scenes", *map(_heading, cells)], rows)


def _retrieval_levels(variants: Sequence[str], results: Results) -> str:
    rows = [
        [name, title, *(_level(results.retrieval(name, scenes, way)) for way in RETRIEVAL)]
        for name in variants
        for scenes, title in SCENES.items()
    ]
    return table(["run", "scenes", *RETRIEVAL], rows)


def _retrieval_differences(comparisons: Sequence[Comparison], results: Results) -> str:
    rows = []
    for pair in comparisons:
        if not results.seeds(pair.better, pair.worse):
            continue
        for scenes, title in SCENES.items():
            row = [pair.question, title]
            for way in RETRIEVAL:
                found = results.retrieval_difference(
                    pair.better, pair.worse, scenes=scenes, direction=way
                )
                row.append(f"{found.mean:+.1f} [{found.low:+.1f}, {found.high:+.1f}]")
            rows.append(row)
    return table(["what", "scenes", *RETRIEVAL], rows)


def _seeds(variants: Sequence[str], results: Results) -> str:
    cells = [Cell(scenes="", row=row, metric=metric) for metric in METRICS for row in KINDS]
    rows = []
    for name in variants:
        for scenes, title in SCENES.items():
            row = [name, title]
            for cell in cells:
                here = Cell(scenes=scenes, row=cell.row, metric=cell.metric)
                row.append(" / ".join(f"{v:.1f}" for v in results.level(name, here).values))
            rows.append(row)
    return table(["run", "scenes", *map(_heading, cells)], rows)


def _sentence(pair: Comparison, results: Results, kind: str) -> str:
    """Say plainly whether the paper's direction is seen."""
    if not results.seeds(pair.better, pair.worse):
        return f"- **{pair.question}**: {MISSING}."
    said = []
    for scenes, title in SCENES.items():
        for metric in METRICS:
            cell = Cell(scenes=scenes, row=kind, metric=metric)
            found = results.difference(pair.better, pair.worse, cell).seeds
            said.append(f"{metric} on {title} {found.mean:+.1f}, {said_of(pair, found)}")
    return f"- **{pair.question}** ({kind}): {'; '.join(said)}."


def said_of(pair: Comparison, found: SeedMean) -> str:
    """Put the verdict on one score's paired differences into words."""
    if len(found.values) < 2:
        return "one seed says nothing"
    judged = verdict(found)
    if pair.is_equality:
        return "no difference seen" if found.low <= 0 <= found.high else "a difference"
    words = {
        "yes": "reproduced",
        "in sign only": "right in every seed, interval not above zero",
        "no": "not reproduced",
        "the opposite": "the opposite",
    }
    return words[judged]


def painted_section(results: Results, variants: Sequence[str]) -> str:
    """Patches against the same model's painted CLS1: does anything localise at all?"""
    rows = []
    for name in variants:
        if not results.seeds(name):
            continue
        for scenes, title in SCENES.items():
            row = [name, title]
            for metric in METRICS:
                for kind in KINDS:
                    cell = Cell(scenes=scenes, row=kind, metric=metric)
                    row.append(_difference(results.own_difference(name, cell, PAINTED)))
            rows.append(row)
    header = [f"{metric}, {kind}" for metric in METRICS for kind in KINDS]
    return "\n\n".join(
        [
            "## Against the model's own painted CLS1",
            "Patches minus the image's class painted over it; only above zero is there "
            "segmentation worth the name.",
            table(["run", "scenes", *header], rows),
        ]
    )
