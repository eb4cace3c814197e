"""The report: choices on development scenes, every row on every test set, readable by export."""

from functools import partial
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter
from transformers import Tipsv2Model, Tipsv2Tokenizer

from model.manifest import ScoreEntry
from training.data.folder import DataFolder, common_names
from training.data.scenes import Scene
from training.evaluate import report
from training.evaluate.benchmark import SegmentationBenchmark, development_benchmarks, rare_names
from training.evaluate.encoder import SceneEncoder
from training.evaluate.report import Encoder

MODEL_ROWS = ["student", "student, its CLS1 painted", "teacher", "teacher, its CLS1 painted"]
ROWS = [
    *MODEL_ROWS,
    "random weights",
    "largest object painted",
    "student - its CLS1 painted",
    "student - teacher",
]


@pytest.fixture
def benchmark(scenes: list[Scene], names: list[str]) -> SegmentationBenchmark:
    """Four scenes of the drawn names."""
    return SegmentationBenchmark(name="few", scenes=scenes[:4], names=names)


@pytest.fixture
def folder(encoder_model: Tipsv2Model, tokenizer: Tipsv2Tokenizer, tmp_path: Path) -> Path:
    """A saved model, its weights moved a little as by training, with its tokenizer."""
    with torch.no_grad():
        for parameter in encoder_model.vision_model.parameters():
            parameter.mul_(1.1)
    encoder_model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_the_choice_with_the_best_mean_score_is_taken(
    encoder_model: Tipsv2Model,
    tokenizer: Tipsv2Tokenizer,
    scenes: list[Scene],
    names: list[str],
) -> None:
    parts = [
        SegmentationBenchmark(name=name, scenes=part, names=names)
        for name, part in (("a", scenes[:5]), ("b", scenes[5:]))
    ]
    chosen = report.choose(encoder_model, tokenizer, parts)
    scores = {}
    for templates in ("none", "tcl"):
        for kind in ("patches", "values"):
            encoders = [SceneEncoder(encoder_model, tokenizer, p.scenes) for p in parts]
            scores[kind, templates] = sum(
                report._patch_counts(p, e, e.classes(names, templates), kind).miou()
                for p, e in zip(parts, encoders, strict=True)
            )
    assert scores[chosen.features, chosen.templates] == max(scores.values())
    assert len(set(scores.values())) > 1


def test_every_row_has_both_metrics_and_an_interval(
    encoder_model: Tipsv2Model, tokenizer: Tipsv2Tokenizer, benchmark: SegmentationBenchmark
) -> None:
    one = Encoder(model=encoder_model, tokenizer=tokenizer, features="patches", templates="none")
    entries = report.score_benchmark(benchmark, student=one, teacher=one, random=one)
    assert [(e.row, e.metric) for e in entries] == [(r, m) for r in ROWS for m in ("mIoU", "which")]
    by_row = {(entry.row, entry.metric): entry for entry in entries}
    for entry in entries:
        assert (entry.task, entry.split, entry.count) == ("zero-shot segmentation", "few", 4)
        assert entry.low is not None
        assert entry.high is not None
        assert entry.low <= entry.value <= entry.high
    for metric in ("mIoU", "which"):
        assert by_row["student", metric].value == by_row["random weights", metric].value
        equal = by_row["student - teacher", metric]
        assert (equal.value, equal.low, equal.high) == (0.0, 0.0, 0.0)
        painted = by_row["student, its CLS1 painted", metric].value
        gain = by_row["student - its CLS1 painted", metric].value
        assert gain == pytest.approx(by_row["student", metric].value - painted, abs=0.011)


def test_the_test_sets_hold_what_their_names_say(data_folder: DataFolder) -> None:
    main, rarer, seen, line, unseen = report.test_benchmarks(data_folder, 3)
    bank = data_folder.bank()

    def styles(benchmark: SegmentationBenchmark) -> set[str]:
        rows = [row for scene in benchmark.scenes for row in scene.drawings]
        return {bank.styles[bank.style_M[row]] for row in rows}

    assert "unseen style" in main.name
    assert set(main.names) == set(seen.names) == common_names()
    assert set(rarer.names) == rare_names()
    assert styles(main) == styles(rarer) == {"fluent-3d"}
    assert styles(line) == {"openmoji"}
    assert styles(seen) | styles(unseen) <= {"noto", "twemoji", "noto-v1", "emojione"}
    assert not set(unseen.names) & (set(main.names) | set(rarer.names))


def test_a_whole_evaluation(
    folder: Path, data_folder: DataFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = partial(development_benchmarks, num_scenes=2)
    monkeypatch.setattr(report, "development_benchmarks", few)
    chosen, entries = report.evaluate(folder, folder, data_folder, num_scenes=2)
    assert chosen.features in {"patches", "values"}
    assert chosen.templates in {"none", "tcl"}
    assert not chosen.model.training
    assert len(entries) == 5 * len(ROWS) * 2
    report.write_scores(tmp_path, entries)
    saved = (tmp_path / "scores.json").read_bytes()
    assert TypeAdapter(list[ScoreEntry]).validate_json(saved) == entries


def test_random_weights_have_the_same_shape_and_forget_everything(
    folder: Path, benchmark: SegmentationBenchmark
) -> None:
    trained = report.load_encoder(folder, [benchmark])
    random = report.load_encoder(folder, [benchmark], is_random=True)
    again = report.load_encoder(folder, [benchmark], is_random=True)
    for name, value in trained.model.state_dict().items():
        other = random.model.state_dict()[name]
        assert other.shape == value.shape
        assert other.equal(again.model.state_dict()[name])
    weight = "vision_model.encoder.layer.0.mlp.fc1.weight"
    assert not trained.model.state_dict()[weight].equal(random.model.state_dict()[weight])
