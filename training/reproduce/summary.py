"""The page's first table: every comparison in one line, with a verdict that follows the numbers."""

from collections import Counter
from collections.abc import Sequence

from training.reproduce.plan import EFFECTS, Comparison
from training.reproduce.report import MISSING, SCENES, said_of, table
from training.reproduce.results import METRICS, Cell, Results, SeedMean

_EXPLANATION = """\
Difference in percentage points: mean over seeds [95 % t-interval over seeds], seeds above zero. The
verdict counts what is said of these four scores, by {kind} (see below)."""


def summary_section(results: Results, kind: str) -> str:
    """All comparisons at a glance.

    Args:
        results: What is measured.
        kind: Patches or values, whichever the verdicts go by.
    """
    cells = [Cell(scenes=s, row=kind, metric=m) for m in METRICS for s in SCENES]
    header = ["effect", "what", *(f"{c.metric}, {SCENES[c.scenes]}" for c in cells), "verdict"]
    rows = [
        [f"({effect.letter})", pair.question, *_cells(pair, results, cells)]
        for effect in EFFECTS
        for pair in effect.comparisons
    ]
    return "\n\n".join(["## At a glance", _EXPLANATION.format(kind=kind), table(header, rows)])


def _cells(pair: Comparison, results: Results, cells: Sequence[Cell]) -> list[str]:
    if not results.seeds(pair.better, pair.worse):
        return [*("" for _ in cells), MISSING]
    found = [results.difference(pair.better, pair.worse, cell).seeds for cell in cells]
    counts = Counter(said_of(pair, seeds) for seeds in found)
    verdict = "; ".join(f"{said} in {count} of {len(cells)}" for said, count in counts.items())
    return [*map(_difference, found), verdict]


def _difference(seeds: SeedMean) -> str:
    if len(seeds.values) < 2:
        return f"{seeds.mean:+.1f}"
    above = sum(value > 0 for value in seeds.values)
    return f"{seeds.mean:+.1f} [{seeds.low:+.1f}, {seeds.high:+.1f}] {above}/{len(seeds.values)}"
