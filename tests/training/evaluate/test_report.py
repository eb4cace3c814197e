"""The report: every row on every test set, chance beside them, readable by export."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter
from transformers import Tipsv2Model, Tipsv2Tokenizer

from model.encoder import Tipsv2Encoder
from model.manifest import ScoreEntry
from training.data.folder import DataFolder
from training.data.scenes import Scene, SceneSource
from training.data.sprites import SpriteBank
from training.evaluate import report
from training.evaluate.chosen_encoder import ChosenEncoder
from training.evaluate.ranking import single_drawings
from training.evaluate.report import ComparedModels
from training.evaluate.sets import SegmentationBenchmark, development_benchmarks

STUDENTS = ("student", "student, seed 1")
MODELS = (*STUDENTS, "teacher", "served")
ROWS = [
    *(row for model in MODELS for row in (model, f"{model}, its CLS1 painted")),
    *("random weights", "largest object painted", "chance"),
    *(f"{s} - {o}" for s in STUDENTS for o in ("its CLS1 painted", "teacher", "served", "chance")),
]
RANKED = [*MODELS, "random weights", "student - served", "chance"]


@pytest.fixture
def benchmark(scenes: list[Scene], names: list[str]) -> SegmentationBenchmark:
    """Four scenes of the drawn names."""
    return SegmentationBenchmark(name="few", scenes=scenes[:4], names=names, is_retrieved=True)


@pytest.fixture
def models(encoder_model: Tipsv2Model, tokenizer: Tipsv2Tokenizer) -> ComparedModels:
    """One model in every part, another as the further seed."""
    torch.manual_seed(5)
    other_model = Tipsv2Model(encoder_model.config).eval()
    one, other = (
        ChosenEncoder(encoder=Tipsv2Encoder(model, tokenizer), features="patches", templates="none")
        for model in (encoder_model, other_model)
    )
    return ComparedModels(student=one, further=(other,), teacher=one, served=other, random=one)


def test_segmentation_has_every_row_with_intervals_and_differences(
    models: ComparedModels, benchmark: SegmentationBenchmark
) -> None:
    entries = report.score_scenes(replace(benchmark, is_retrieved=False), models)
    assert [(e.row, e.metric) for e in entries] == [(r, m) for r in ROWS for m in ("mIoU", "which")]
    for entry in entries:
        assert (entry.task, entry.split, entry.count) == (report.SEGMENTATION, "few", 4)
        assert (entry.low is None) is (entry.high is None) is (entry.row == "chance")
        assert (entry.low or 0) <= (entry.high or 0)
    by_row = {(entry.row, entry.metric): entry for entry in entries}
    for metric in ("mIoU", "which"):
        assert by_row["student", metric].value == by_row["random weights", metric].value
        equal = by_row["student - teacher", metric]
        assert (equal.value, equal.low, equal.high) == (0.0, 0.0, 0.0)
        for row in STUDENTS:
            own = by_row[row, metric].value
            for name in ("its CLS1 painted", "teacher", "served", "chance"):
                other = by_row[f"{row}, {name}" if "painted" in name else name, metric].value
                gain = by_row[f"{row} - {name}", metric].value
                assert gain == pytest.approx(own - other, abs=0.011)
    assert by_row["student, seed 1 - teacher", "which"].value != 0


def test_teacher_and_served_model_are_optional(
    models: ComparedModels, benchmark: SegmentationBenchmark
) -> None:
    entries = report.score_scenes(benchmark, replace(models, teacher=None, served=None))
    rows = {entry.row for entry in entries if entry.task == report.SEGMENTATION}
    assert rows == {row for row in ROWS if "teacher" not in row and "served" not in row}
    assert not [entry for entry in entries if "served" in entry.row]


def test_retrieval_is_scored_both_ways_with_both_captions(
    models: ComparedModels, benchmark: SegmentationBenchmark
) -> None:
    entries = report.score_scenes(benchmark, models)
    entries = [entry for entry in entries if entry.task == report.RETRIEVAL]
    assert [(entry.split, entry.row, entry.metric, entry.count) for entry in entries] == [
        (f"few; {split}", row, f"{direction} R@{depth}", 4)
        for split in ("short captions, CLS1", "scene captions, CLS2")
        for direction in ("image to text", "text to image")
        for row in RANKED
        for depth in (1, 5)
    ]
    chance = [(e.metric, e.value) for e in entries if e.row == "chance"]
    assert chance.count(("image to text R@1", 25.0)) == 2  # four scenes, four captions
    assert chance.count(("text to image R@5", 100.0)) == 2


def test_drawings_are_scored_at_both_depths(
    models: ComparedModels, sprite_bank: SpriteBank, source: SceneSource
) -> None:
    drawings = single_drawings(
        "drawn", sprite_bank, styles=("noto",), shown=source.names, names=source.names
    )
    entries = report.score_drawings(drawings, models)
    assert [(e.row, e.metric) for e in entries] == [
        (r, m) for r in RANKED for m in ("top-1", "top-5")
    ]
    assert {(entry.task, entry.split, entry.count) for entry in entries} == {
        ("zero-shot classification", "drawn", 14)
    }
    by_row = {(entry.row, entry.metric): entry for entry in entries}
    assert by_row["chance", "top-1"].value == pytest.approx(100 / 14, abs=0.005)
    assert by_row["chance", "top-5"].value == pytest.approx(500 / 14, abs=0.005)
    teacher = by_row["teacher", "top-1"]
    assert by_row["student", "top-1"] == teacher.model_copy(update={"row": "student"})
    for metric in ("top-1", "top-5"):
        gain, served = by_row["student - served", metric], by_row["served", metric]
        assert gain.value == pytest.approx(by_row["student", metric].value - served.value, abs=0.02)
        assert gain.low is not None
        assert gain.low <= gain.value


@pytest.mark.slow
def test_a_whole_evaluation(
    folder: Path, data_folder: DataFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = partial(development_benchmarks, num_scenes=2)
    monkeypatch.setattr(report, "development_benchmarks", few)
    chosen, entries = report.evaluate(
        folder, folder, data_folder, further=[folder], served=folder, num_scenes=2
    )
    assert chosen.features in {"patches", "values"}
    assert {chosen.templates, chosen.class_templates} <= {"none", "tcl"}
    tasks = {task: len([e for e in entries if e.task == task]) for task in report.TASKS}
    assert list(dict.fromkeys(entry.task for entry in entries)) == list(report.TASKS)
    assert tasks[report.SEGMENTATION] == 5 * len(ROWS) * 2
    assert tasks[report.RETRIEVAL] == 2 * 2 * len(RANKED) * 4
    assert tasks[report.CLASSIFICATION] == 6 * len(RANKED) * 2
    report.write_scores(tmp_path, entries)
    saved = (tmp_path / "scores.json").read_bytes()
    assert TypeAdapter(list[ScoreEntry]).validate_json(saved) == entries
