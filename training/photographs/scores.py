"""Scores of a cell encoder: the segmentation sets of the other models, at its own native size."""

from collections.abc import Mapping

from model.cell_encoder import CellEncoder
from model.manifest import ScoreEntry
from model.scores.gate import STUDENT
from training.evaluate.encoder import encode_names
from training.evaluate.report import PAINTED, count_entries
from training.evaluate.sets import SegmentationBenchmark
from training.evaluate.zero_shot_segmentation import SceneCounts


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
    return list(count_entries(benchmark.name, rows))
