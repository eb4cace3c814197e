"""The report: every row on every test set, chance beside them, readable by export."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter
from transformers import Tipsv2Model, Tipsv2Tokenizer

from model.encoder import Tipsv2Encoder
from model.manifest import ScoreEntry
from training.data.folder import DataFolder
from training.data.scenes import Scene
from training.evaluate import report
from training.evaluate.report import ChosenEncoder, Models
from training.evaluate.sets import SegmentationBenchmark
from training.score_entries import write_scores

STUDENTS = ("student", "student, seed 1")
MODELS = (*STUDENTS, "teacher", "served")
OTHERS = ("its CLS1 painted", "teacher", "served", "chance")
ROWS = [
    *(row for model in MODELS for row in (model, f"{model}, its CLS1 painted")),
    *("largest object painted", "chance"),
    *(f"{student} - {other}" for student in STUDENTS for other in OTHERS),
]
SEGMENTATION_ROWS = [
    (row, metric)
    for row in ROWS
    for metric in ("mIoU", "which", "IoU with background", "boundary F")
    if metric in ("mIoU", "which") or not (" - " in row or row == "chance")
]
RANKED = [*MODELS, "student - served", "chance"]


@pytest.fixture
def benchmark(scenes: list[Scene], names: list[str]) -> SegmentationBenchmark:
    """Four scenes of the drawn names."""
    return SegmentationBenchmark(name="few", scenes=scenes[:4], names=names, is_retrieved=True)


@pytest.fixture
def models(student_model: Tipsv2Model, tokenizer: Tipsv2Tokenizer) -> Models:
    """The student is its own teacher; the served one and the further seed are another model."""
    torch.manual_seed(5)
    other_model = Tipsv2Model(student_model.config)
    one, other = (
        ChosenEncoder(
            encoder=Tipsv2Encoder(model.eval(), tokenizer), features="patches", templates="none"
        )
        for model in (student_model, other_model)
    )
    return dict(zip(MODELS, (one, other, one, other), strict=True))


def test_segmentation_has_every_row_with_intervals_and_differences(
    models: Models, benchmark: SegmentationBenchmark
) -> None:
    entries = report.score_scenes(replace(benchmark, is_retrieved=False), models)
    assert [(entry.row, entry.metric) for entry in entries] == SEGMENTATION_ROWS
    for entry in entries:
        assert (entry.task, entry.split, entry.count) == (report.SEGMENTATION, "few", 4)
        assert (entry.low is None) is (entry.high is None) is (entry.row == "chance")
        assert (entry.low or 0) <= (entry.high or 0)
    by_row = {(entry.row, entry.metric): entry for entry in entries}
    for metric in ("mIoU", "which"):
        equal = by_row["student - teacher", metric]
        assert (equal.value, equal.low, equal.high) == (0.0, 0.0, 0.0)
        for row in STUDENTS:
            for name in OTHERS:
                other = by_row[f"{row}, {name}" if "painted" in name else name, metric].value
                gain = by_row[f"{row} - {name}", metric].value
                assert gain == pytest.approx(by_row[row, metric].value - other, abs=0.011)
    assert by_row["student, seed 1 - teacher", "which"].value != 0
    alone = report.score_scenes(benchmark, {"student": models["student"]})
    assert not [entry for entry in alone if "served" in entry.row or "teacher" in entry.row]


@pytest.mark.slow
def test_a_whole_evaluation(
    encoder: Tipsv2Encoder, data_folder: DataFolder, tmp_path: Path, tokenizer: Tipsv2Tokenizer
) -> None:
    folder = tmp_path / "model"
    encoder.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    chosen, entries = report.evaluate(dict.fromkeys(MODELS, folder), data_folder, num_scenes=2)
    assert chosen.features in {"patches", "values"}
    tasks = {task: len([e for e in entries if e.task == task]) for task in report.TASKS}
    assert list(dict.fromkeys(entry.task for entry in entries)) == list(report.TASKS)
    assert tasks[report.SEGMENTATION] == 5 * len(SEGMENTATION_ROWS)
    assert tasks[report.RETRIEVAL] == 2 * 2 * len(RANKED) * 4
    assert tasks[report.CLASSIFICATION] == 6 * len(RANKED) * 2
    write_scores(tmp_path, entries)
    saved = (tmp_path / "scores.json").read_bytes()
    assert TypeAdapter(list[ScoreEntry]).validate_json(saved) == entries
