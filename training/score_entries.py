"""Scores with intervals as the manifest has them, and the file that export reads."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from model.manifest import ScoreEntry
from model.scores.bootstrap import bootstrap


def score_entries(
    task: str,
    split: str,
    rows: Mapping[str, tuple[Any, ...]],
    metrics: Mapping[str, Callable[[Any, Any], Any]],
    *,
    digits: int = 2,
) -> Iterator[ScoreEntry]:
    """Yield each metric of each row.

    Args:
        task: Of the manifest.
        split: Name of the set.
        rows: Counts by example; those of two models on the same examples for their difference.
        metrics: See `model.scores.bootstrap`.
        digits: That values are rounded to.
    """
    for row, counts in rows.items():
        for metric, function in metrics.items():
            interval = bootstrap(function, *counts)
            yield ScoreEntry(
                task=task,
                split=split,
                row=row,
                metric=metric,
                value=round(interval.value, digits),
                low=round(interval.low, digits),
                high=round(interval.high, digits),
                count=len(counts[0]),
            )


def write_scores(folder: Path, entries: Iterable[ScoreEntry]) -> None:
    """Write `scores.json` as export expects it."""
    rows = [entry.model_dump() for entry in entries]
    (folder / "scores.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
