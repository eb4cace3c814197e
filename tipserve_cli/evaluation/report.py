"""The report of an evaluation: scores with intervals as JSON, and their comparison with another.

A folder holds `report.json`, the counts of each example that a comparison needs (`counts.npz`), and
the page for readers.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from model.files import atomic_write
from model.manifest import ScoreEntry
from model.scores.bootstrap import Interval
from model.scores.pixels import Pixels
from tipserve_cli.engine import UserError, describe
from tipserve_cli.evaluation.results import Result, Score
from tipserve_client import ModelInfo

REPORT: Final = "report.json"
COUNTS: Final = "counts.npz"
MODEL, EARLIER, CHANCE = "model", "earlier", "chance"
GAIN: Final = f"{MODEL} - {EARLIER}"
NUM_CONFUSED: Final = 10
LEAST_EXAMPLES: Final = 10


@dataclass(frozen=True, slots=True)
class Earlier:
    """The counts of an earlier report, and its folder."""

    folder: Path
    counts: Mapping[str, NDArray[Any]]

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the counts of a folder."""
        try:
            with np.load(folder / COUNTS, allow_pickle=False) as stored:
                return cls(folder, {name: stored[name] for name in stored.files})
        except (OSError, ValueError) as error:
            raise UserError(f"{folder} has no report: {COUNTS} cannot be read.") from error

    def of(self, result: Result, score: Score) -> Any:
        """The counts of the same score."""
        place = f"{result.task} | {result.split}"
        fields = [field.name for field in dataclasses.fields(score.counts)]
        names = [f"{place} | {score.metric} | {field}" for field in fields]
        if not all(name in self.counts for name in names):
            raise UserError(f"{self.folder} has no score '{place} | {score.metric}'.")
        if self.counts[place] != _digest(result):
            raise UserError(f"{self.folder}: {place!r} was measured on other images or labels.")
        arrays = (self.counts[name] for name in names)
        return type(score.counts)(**dict(zip(fields, arrays, strict=True)))


def entries_of(results: Sequence[Result], earlier: Earlier | None) -> list[ScoreEntry]:
    """The rows of all scores: the model's, its difference to an earlier report, and chance."""
    entries = []
    for result in results:
        for score in result.scores:
            rows: dict[str, Interval | float | None] = {MODEL: _told(score)}
            if earlier is not None:
                rows[GAIN] = _told(score, earlier.of(result, score))
            rows[CHANCE] = score.chance
            for row, value in rows.items():
                if value is not None:
                    numbers = {"value": value} if isinstance(value, float) else asdict(value)
                    named = {"task": result.task, "split": result.split, "metric": score.metric}
                    rounded = {key: round(number, 4) for key, number in numbers.items()}
                    entries.append(ScoreEntry(**named, row=row, count=len(score.counts), **rounded))
    return entries


def _told(score: Score, other: Any = None) -> Interval | float | None:
    """The value, with its interval where the examples can give one.

    Resamples of few examples, or of examples with one value, say nothing about others.
    """
    found = score.interval(other)
    has_interval = len(score.counts) >= LEAST_EXAMPLES and found.low < found.high
    return found if has_interval else found.value


def _digest(result: Result) -> str:
    """Of the examples and the right answers, by which results can be compared."""
    parts = [list(result.examples), list(result.names), result.truth]
    digest = hashlib.sha256(json.dumps(parts).encode())
    for score in result.scores:
        if isinstance(score.counts, Pixels):
            digest.update(score.counts.truth_SK.tobytes())
        else:
            digest.update(score.counts.count_S.tobytes())
            if result.confusion_KK is not None:
                digest.update(result.confusion_KK.sum(1).tobytes())
    return digest.hexdigest()


def digits(metric: str) -> int:
    """Decimals that readers see: millimetres, or hundredths."""
    return 3 if metric.endswith("(m)") else 2


def numbers_of(entry: ScoreEntry) -> tuple[str, str]:
    """The value and the interval of a score as text; the interval is empty if there is none."""
    places = digits(entry.metric)
    interval = "" if entry.low is None else f"[{entry.low:.{places}f}, {entry.high:.{places}f}]"
    return f"{entry.value:.{places}f}", interval


def class_scores(result: Result) -> list[tuple[str, float]]:
    """IoU or accuracy of each class that occurs, in percent, the worst first."""
    table_KK = result.confusion_KK
    if table_KK is None:
        return []
    counts = result.scores[0].counts
    if isinstance(counts, Pixels):
        score_K = counts.iou(np.ones((1, len(counts))))[0]
    else:
        with np.errstate(invalid="ignore"):
            score_K = 100 * table_KK.diagonal() / table_KK.sum(1)
    pairs = zip(result.names, score_K.tolist(), strict=True)
    return sorted(((name, x) for name, x in pairs if np.isfinite(x)), key=lambda pair: pair[1])


def confused_classes(result: Result) -> list[tuple[str, str, float]]:
    """True class, predicted class, and percent of the true class: the worst first."""
    table_KK = result.confusion_KK
    if table_KK is None:
        return []
    wrong_KK = 100 * table_KK / np.maximum(table_KK.sum(1, keepdims=True), 1)
    np.fill_diagonal(wrong_KK, 0)
    order = np.argsort(-wrong_KK, axis=None, kind="stable")[:NUM_CONFUSED]
    rows, columns = np.unravel_index(order, wrong_KK.shape)
    return [
        (result.names[row], result.names[column], float(wrong_KK[row, column]))
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True)
        if wrong_KK[row, column]
    ]


def write_report(
    folder: Path, model: ModelInfo, results: Sequence[Result], entries: Sequence[ScoreEntry]
) -> None:
    """Write `report.json` and `counts.npz`."""
    document = {
        "model": describe(model),
        "scores": [entry.model_dump() for entry in entries],
        "tasks": [
            {
                "task": result.task,
                "split": result.split,
                "options": dict(result.options),
                "classes": [
                    {"name": name, "value": round(value, 4)} for name, value in class_scores(result)
                ],
                "confused": [
                    {"truth": truth, "predicted": called, "percent": round(percent, 4)}
                    for truth, called, percent in confused_classes(result)
                ],
                "published": [asdict(one) for one in result.published],
            }
            for result in results
        ],
    }
    atomic_write(folder / REPORT, json.dumps(document, indent=1) + "\n")
    arrays: dict[str, Any] = {}
    for result in results:
        arrays[f"{result.task} | {result.split}"] = _digest(result)
        for score in result.scores:
            for field, array in asdict(score.counts).items():
                arrays[f"{result.task} | {result.split} | {score.metric} | {field}"] = array
    stream = BytesIO()
    np.savez_compressed(stream, **arrays)
    atomic_write(folder / COUNTS, stream.getvalue())
