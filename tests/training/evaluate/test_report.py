"""The report: every row on every test set, chance beside them, readable by export."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter
from transformers import Tipsv2Model, Tipsv2Tokenizer

from model.manifest import ScoreEntry
from training.data.folder import DataFolder
from training.data.scenes import Scene, SceneSource
from training.data.sprites import SpriteBank
from training.evaluate import report
from training.evaluate.chosen_encoder import Encoder
from training.evaluate.ranking import single_drawings
from training.evaluate.report import ComparedModels
from training.evaluate.sets import SegmentationBenchmark, development_benchmarks

ROWS = [
    "student",
    "student, its CLS1 painted",
    "student, seed 1",
    "student, seed 1, its CLS1 painted",
    "teacher",
    "teacher, its CLS1 painted",
    "served",
    "served, its CLS1 painted",
    "random weights",
    "largest object painted",
    "chance",
    "student - its CLS1 painted",
    "student - teacher",
    "student - served",
    "student - chance",
    "student, seed 1 - its CLS1 painted",
    "student, seed 1 - teacher",
    "student, seed 1 - served",
    "student, seed 1 - chance",
]
RANKED = [
    "student",
    "student, seed 1",
    "teacher",
    "served",
    "random weights",
    "student - served",
    "chance",
]


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
        Encoder(model=model, tokenizer=tokenizer, features="patches", templates="none")
        for model in (encoder_model, other_model)
    )
    return ComparedModels(student=one, further=(other,), teacher=one, served=other, random=one)


def _segmentation(entries: list[ScoreEntry]) -> list[ScoreEntry]:
    return [entry for entry in entries if entry.task == "zero-shot segmentation"]


def test_every_row_has_both_metrics_and_an_interval(
    models: ComparedModels, benchmark: SegmentationBenchmark
) -> None:
    entries = _segmentation(report.score_scenes(benchmark, models))
    assert [(e.row, e.metric) for e in entries] == [(r, m) for r in ROWS for m in ("mIoU", "which")]
    for entry in entries:
        assert (entry.split, entry.count) == ("few", 4)
        if entry.row == "chance":
            assert (entry.low, entry.high) == (None, None)
        else:
            assert entry.low is not None
            assert entry.high is not None
            assert entry.low <= entry.high


def test_differences_are_between_their_rows(
    models: ComparedModels, benchmark: SegmentationBenchmark
) -> None:
    entries = _segmentation(report.score_scenes(benchmark, models))
    by_row = {(entry.row, entry.metric): entry for entry in entries}
    for metric in ("mIoU", "which"):
        assert by_row["student", metric].value == by_row["random weights", metric].value
        equal = by_row["student - teacher", metric]
        assert (equal.value, equal.low, equal.high) == (0.0, 0.0, 0.0)
        for row in ("student", "student, seed 1"):
            own = by_row[row, metric].value
            painted = by_row[f"{row}, its CLS1 painted", metric].value
            others = {
                "its CLS1 painted": painted,
                "teacher": by_row["teacher", metric].value,
                "served": by_row["served", metric].value,
                "chance": by_row["chance", metric].value,
            }
            for name, other in others.items():
                gain = by_row[f"{row} - {name}", metric].value
                assert gain == pytest.approx(own - other, abs=0.011)
    assert by_row["student, seed 1 - teacher", "which"].value != 0


def test_a_student_may_come_without_a_teacher_and_be_the_first(
    models: ComparedModels, benchmark: SegmentationBenchmark
) -> None:
    alone = replace(models, teacher=None, served=None)
    entries = report.score_scenes(benchmark, alone)
    rows = {entry.row for entry in _segmentation(entries)}
    assert rows == {row for row in ROWS if "teacher" not in row and "served" not in row}
    assert not [entry for entry in entries if "served" in entry.row]


def test_retrieval_is_scored_both_ways_with_both_captions(
    models: ComparedModels, benchmark: SegmentationBenchmark
) -> None:
    entries = [
        entry
        for entry in report.score_scenes(benchmark, models)
        if entry.task == "image-text retrieval"
    ]
    splits = ["few; short captions, CLS1", "few; scene captions, CLS2"]
    assert list(dict.fromkeys(entry.split for entry in entries)) == splits
    for split in splits:
        own = [entry for entry in entries if entry.split == split]
        assert [(entry.row, entry.metric) for entry in own] == [
            (row, f"{direction} R@{depth}")
            for direction in ("image to text", "text to image")
            for row in RANKED
            for depth in (1, 5)
        ]
        chance = {entry.metric: entry.value for entry in own if entry.row == "chance"}
        assert chance["image to text R@1"] == 25.0  # four scenes, four captions
        assert chance["text to image R@5"] == 100.0
    assert {entry.count for entry in entries} == {4}


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
    by_row = {(entry.row, entry.metric): entry for entry in entries}
    assert by_row["chance", "top-1"].value == pytest.approx(100 / 14, abs=0.005)
    assert by_row["chance", "top-5"].value == pytest.approx(500 / 14, abs=0.005)
    assert by_row["student", "top-1"] == by_row["teacher", "top-1"].model_copy(
        update={"row": "student"}
    )
    for metric in ("top-1", "top-5"):
        gain, served = by_row["student - served", metric], by_row["served", metric]
        assert gain.value == pytest.approx(by_row["student", metric].value - served.value, abs=0.02)
        assert gain.low is not None
        assert gain.low <= gain.value
    assert by_row["student", "top-5"].value >= by_row["student", "top-1"].value
    assert {(entry.task, entry.split, entry.count) for entry in entries} == {
        ("zero-shot classification", "drawn", 14)
    }


@pytest.mark.slow
def test_a_whole_evaluation(
    encoder_model: Tipsv2Model,
    tokenizer: Tipsv2Tokenizer,
    data_folder: DataFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "model"
    encoder_model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
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
