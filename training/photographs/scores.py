"""Scores of a cell encoder: the segmentation sets of the other models, at its own native size."""

from collections.abc import Mapping
from functools import partial

from model.cell_encoder import CellEncoder
from model.manifest import ScoreEntry
from model.scores.bootstrap import bootstrap
from model.scores.gate import STUDENT
from training.evaluate.encoder import encode_names
from training.evaluate.report import CHANCE, OBJECT_METRICS, PAINTED, SEGMENTATION
from training.evaluate.sets import SegmentationBenchmark
from training.evaluate.zero_shot_segmentation import SceneCounts

_METRICS = {"mIoU": SceneCounts.miou, "which": SceneCounts.which}


def score_benchmark(
    benchmark: SegmentationBenchmark, models: Mapping[str, CellEncoder]
) -> list[ScoreEntry]:
    """Entries of all models on one set; `models` has the served one as `STUDENT`."""
    rows: dict[str, SceneCounts] = {}
    for row, encoder in models.items():
        features = benchmark.encode(encoder)
        classes_KD = encode_names(encoder, benchmark.names, "none")
        kinds = {row: "values", f"{row}, {PAINTED}": "cls1"}
        if row == STUDENT:
            kinds[f"{row}, patches"] = "patches"
        rows |= {
            title: benchmark.count(features[kind], classes_KD) for title, kind in kinds.items()
        }
    entry = partial(
        ScoreEntry, task=SEGMENTATION, split=benchmark.name, count=len(benchmark.scenes)
    )
    entries = []
    for metric, measure in {**_METRICS, **OBJECT_METRICS}.items():
        for row, counted in rows.items():
            interval = bootstrap(measure, counted)
            low, high = round(interval.low, 2), round(interval.high, 2)
            value = round(interval.value, 2)
            entries.append(entry(row=row, metric=metric, value=value, low=low, high=high))
    for metric, chance in _METRICS.items():
        guessed = round(float(chance(rows[STUDENT].guessed())), 2)
        entries.append(entry(row=CHANCE, metric=metric, value=guessed))
    return entries
