"""Scores a student beside its teacher and beside answers that do not look at places, for the card.

Decisions (which features, which templates) are made on development scenes; test scenes are only
scored.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import Tipsv2Model, Tipsv2Tokenizer

from model.manifest import ScoreEntry
from training.data.concepts import all_concepts
from training.data.folder import EMOJI_TRAIN_STYLES, DataFolder, common_names
from training.evaluate.benchmark import (
    PATCH,
    SegmentationBenchmark,
    development_benchmarks,
    make_benchmark,
    rare_names,
)
from training.evaluate.encoder import SceneEncoder
from training.evaluate.zero_shot_segmentation import (
    Metric,
    SceneCounts,
    bootstrap,
    count_scenes,
    largest_object_scorer,
    painted_scorer,
    patch_scorer,
)

TASK = "zero-shot segmentation"
_METRICS: Mapping[str, Metric] = {"mIoU": SceneCounts.miou, "which": SceneCounts.which}


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """A model under test and the choices made for it on development scenes."""

    model: Tipsv2Model
    tokenizer: Tipsv2Tokenizer
    features: str
    templates: str


def choose(
    model: Tipsv2Model, tokenizer: Tipsv2Tokenizer, development: Sequence[SegmentationBenchmark]
) -> Encoder:
    """Pick features and templates by the mean mIoU over the development sets."""
    scored: dict[tuple[str, str], float] = {}
    for benchmark in development:
        encoder = SceneEncoder(model, tokenizer, benchmark.scenes)
        for templates in ("none", "tcl"):
            classes = encoder.classes(benchmark.names, templates)
            for kind in ("patches", "values"):
                counts = _patch_counts(benchmark, encoder, classes, kind)
                key = (kind, templates)
                scored[key] = scored.get(key, 0.0) + counts.miou()
    features, templates = max(scored, key=lambda key: scored[key])
    return Encoder(model=model, tokenizer=tokenizer, features=features, templates=templates)


def _patch_counts(
    benchmark: SegmentationBenchmark,
    encoder: SceneEncoder,
    classes_KD: NDArray[np.float32],
    kind: str,
) -> SceneCounts:
    scorer = patch_scorer(partial(encoder.feature, kind), classes_KD, PATCH)
    return count_scenes(benchmark.scenes, benchmark.names, scorer)


def test_benchmarks(data: DataFolder, num_scenes: int) -> list[SegmentationBenchmark]:
    """The test sets: the unseen 3D style first, then what is reported beside it without a bar."""
    unseen = frozenset(concept.name for concept in all_concepts() if concept.is_unseen)
    parts = [
        ("Fluent 3D (unseen style), 50 everyday names", ("fluent-3d",), common_names()),
        ("Fluent 3D (unseen style), 50 rarer names", ("fluent-3d",), rare_names()),
        ("seen styles, 50 everyday names", EMOJI_TRAIN_STYLES, common_names()),
        ("OpenMoji (unseen line art), 50 everyday names", ("openmoji",), common_names()),
        (f"unseen concepts in seen styles, {len(unseen)} names", EMOJI_TRAIN_STYLES, unseen),
    ]
    sets = [
        make_benchmark(name, data.source("test", styles=styles, names=names), num_scenes)
        for name, styles, names in parts
    ]
    stamps = data.stamp_source()
    if stamps is not None:
        name = f"photo stamps of Tux Paint, {len(stamps.names)} names"
        sets.append(make_benchmark(name, stamps, num_scenes))
    return sets


def _model_counts(
    benchmark: SegmentationBenchmark, encoder: Encoder, row: str
) -> dict[str, SceneCounts]:
    scenes = SceneEncoder(encoder.model, encoder.tokenizer, benchmark.scenes)
    classes = scenes.classes(benchmark.names, encoder.templates)
    painted = painted_scorer(partial(scenes.feature, "cls1"), classes)
    return {
        row: _patch_counts(benchmark, scenes, classes, encoder.features),
        f"{row}, its CLS1 painted": count_scenes(benchmark.scenes, benchmark.names, painted),
    }


def score_benchmark(
    benchmark: SegmentationBenchmark, *, student: Encoder, teacher: Encoder, random: Encoder
) -> list[ScoreEntry]:
    """All rows of one test set, with 95 % intervals over scenes."""
    counts = _model_counts(benchmark, student, "student")
    counts |= _model_counts(benchmark, teacher, "teacher")
    counts["random weights"] = _model_counts(benchmark, random, "random")["random"]
    counts["largest object painted"] = count_scenes(
        benchmark.scenes, benchmark.names, largest_object_scorer(benchmark.names)
    )
    entries = [_entry(benchmark, row, metric, counts[row]) for row in counts for metric in _METRICS]
    for other in ("student, its CLS1 painted", "teacher"):
        for metric in _METRICS:
            row = f"student - {other.removeprefix('student, ')}"
            entries.append(_entry(benchmark, row, metric, counts["student"], minus=counts[other]))
    return entries


def _entry(
    benchmark: SegmentationBenchmark,
    row: str,
    metric: str,
    counts: SceneCounts,
    *,
    minus: SceneCounts | None = None,
) -> ScoreEntry:
    interval = bootstrap(_METRICS[metric], counts, minus)
    return ScoreEntry(
        task=TASK,
        split=benchmark.name,
        row=row,
        metric=metric,
        value=round(interval.value, 2),
        low=round(interval.low, 2),
        high=round(interval.high, 2),
        count=len(benchmark.scenes),
    )


def load_encoder(
    folder: Path, development: Sequence[SegmentationBenchmark], *, is_random: bool = False
) -> Encoder:
    """Load a finished model, or one of the same shape with random weights, and choose for it."""
    tokenizer = Tipsv2Tokenizer.from_pretrained(folder)
    model = Tipsv2Model.from_pretrained(folder)
    if is_random:
        torch.manual_seed(0)
        model = Tipsv2Model(model.config)
    return choose(model.eval(), tokenizer, development)


def evaluate(
    student: Path, teacher: Path, data: DataFolder, *, num_scenes: int = 500
) -> tuple[Encoder, list[ScoreEntry]]:
    """Score a student on every test set; returns the choices made for it and all rows."""
    development = development_benchmarks(data)
    encoders = {
        "student": load_encoder(student, development),
        "teacher": load_encoder(teacher, development),
        "random": load_encoder(student, development, is_random=True),
    }
    entries: list[ScoreEntry] = []
    for benchmark in test_benchmarks(data, num_scenes):
        entries += score_benchmark(benchmark, **encoders)
    return encoders["student"], entries


def write_scores(folder: Path, entries: Iterable[ScoreEntry]) -> None:
    """Write `scores.json` as export expects it."""
    rows = [entry.model_dump() for entry in entries]
    (folder / "scores.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
