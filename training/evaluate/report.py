"""All scores of a student for its model card, with those of its teacher and of baselines.

Features and templates are chosen on development sets; test sets are only scored.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from model.encoder import Encoder
from model.manifest import ScoreEntry
from model.scores.gate import GAIN, SERVED, STUDENT
from model.scores.ranking import Ranking, found_within
from training.data.folder import DataFolder
from training.evaluate.encoder import encode_names, encode_texts, load_for_evaluation
from training.evaluate.ranking import ClassificationBenchmark, rank_both_ways
from training.evaluate.sets import (
    NUM_DEVELOPMENT,
    SegmentationBenchmark,
    development_benchmarks,
    development_drawings,
    held_out_drawings,
    held_out_scenes,
)
from training.evaluate.zero_shot_segmentation import SceneCounts, count_scenes, largest_object
from training.score_entries import score_entries

SEGMENTATION = "zero-shot segmentation"
RETRIEVAL = "image-text retrieval"
CLASSIFICATION = "zero-shot classification"
TASKS = (SEGMENTATION, RETRIEVAL, CLASSIFICATION)
CHANCE, TEACHER = "chance", "teacher"
PAINTED = "its CLS1 painted"
_DEPTHS = (1, 5)
# Captions, and the global embedding that they were trained with.
_RETRIEVED = {"short": "cls1", "scene": "cls2"}
_Features = Mapping[str, NDArray[np.float32]]
_METRICS = {"mIoU": SceneCounts.miou, "which": SceneCounts.which}
_OBJECT_METRICS = {"IoU with background": SceneCounts.overlap, "boundary F": SceneCounts.outline}
FEATURES = ("patches", "values")
TEMPLATE_SETS = ("none", "tcl")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenEncoder:
    """An encoder in evaluation mode and the choices made for it.

    Attributes:
        features: Patch features for segmentation, "patches" or "values".
        templates: Prompts of classes in segmentation.
        class_templates: Prompts of classes in classification.
    """

    encoder: Encoder
    features: str
    templates: str
    class_templates: str = "none"


def choose(
    encoder: Encoder,
    scenes: Sequence[SegmentationBenchmark],
    drawings: Sequence[ClassificationBenchmark],
) -> ChosenEncoder:
    """Pick features and templates by the mean mIoU, class templates by the mean top-1.

    Scenes and drawings are those for development.
    """
    miou, top1 = defaultdict[tuple[str, str], float](float), defaultdict[str, float](float)
    for benchmark in scenes:
        features = benchmark.encode(encoder)
        for templates in TEMPLATE_SETS:
            classes_KD = encode_names(encoder, benchmark.names, templates)
            for kind in FEATURES:
                counts = benchmark.count(features[kind], classes_KD)
                miou[kind, templates] += counts.overall(SceneCounts.miou)
    for images in drawings:
        for templates in TEMPLATE_SETS:
            top1[templates] += images.classify(encoder, templates).found(1)
    kind, templates = max(miou, key=miou.__getitem__)
    return ChosenEncoder(
        encoder=encoder,
        features=kind,
        templates=templates,
        class_templates=max(top1, key=top1.__getitem__),
    )


Models = Mapping[str, ChosenEncoder]
"""By the name of their row: the student, students of other seeds, its teacher, the served one."""


def score_scenes(benchmark: SegmentationBenchmark, models: Models) -> list[ScoreEntry]:
    """Segmentation of one test set, and retrieval if the set is used for it."""
    features = {row: benchmark.encode(chosen.encoder) for row, chosen in models.items()}
    entries = list(_segmentation_entries(benchmark, models, features))
    if benchmark.is_retrieved:
        entries += _retrieval_entries(benchmark, models, features)
    return entries


def _segmentation_entries(
    benchmark: SegmentationBenchmark, models: Models, features: Mapping[str, _Features]
) -> Iterator[ScoreEntry]:
    counts: dict[str, SceneCounts] = {}
    for row, chosen in models.items():
        classes_KD = encode_names(chosen.encoder, benchmark.names, chosen.templates)
        counts[row] = benchmark.count(features[row][chosen.features], classes_KD)
        counts[f"{row}, {PAINTED}"] = benchmark.count(features[row]["cls1"], classes_KD)
    masks, names = benchmark.masks, benchmark.names
    counts["largest object painted"] = count_scenes(masks, names, largest_object(masks, names))
    yield from count_entries(benchmark.name, counts)
    known = {name: counts[name] for name in (TEACHER, SERVED) if name in counts}
    gains = {
        f"{row} - {name}": (counts[row], other)
        for row in models
        if row.startswith(STUDENT)
        for name, other in {
            PAINTED: counts[f"{row}, {PAINTED}"],
            **known,
            CHANCE: counts[STUDENT].guessed(),
        }.items()
    }
    yield from score_entries(SEGMENTATION, benchmark.name, gains, _METRICS)


def count_entries(split: str, counts: Mapping[str, SceneCounts]) -> Iterator[ScoreEntry]:
    """Yield the scores of each row with intervals, and what a guess has in the same scenes."""
    rows = {row: (own,) for row, own in counts.items()}
    yield from score_entries(SEGMENTATION, split, rows, _METRICS | _OBJECT_METRICS)
    guessed = counts[STUDENT].guessed()
    chances = {metric: guessed.overall(score) for metric, score in _METRICS.items()}
    yield from _chances(SEGMENTATION, split, chances, len(guessed))


def _chances(
    task: str, split: str, values: Mapping[str, float], count: int
) -> Iterator[ScoreEntry]:
    """Closed forms, which have no interval."""
    for metric, value in values.items():
        yield ScoreEntry(
            task=task, split=split, row=CHANCE, metric=metric, value=round(value, 2), count=count
        )


def _retrieval_entries(
    benchmark: SegmentationBenchmark, models: Models, features: Mapping[str, _Features]
) -> Iterator[ScoreEntry]:
    for kind, token in _RETRIEVED.items():
        split = f"{benchmark.name}; {kind} captions, {token.upper()}"
        captions = [getattr(scene.captions, kind) for scene in benchmark.scenes]
        distinct = list(dict.fromkeys(captions))
        rankings = {
            row: rank_both_ways(
                features[row][token], captions, encode_texts(chosen.encoder, distinct)
            )
            for row, chosen in models.items()
        }
        for direction in rankings[STUDENT]:
            by_row = {row: both[direction] for row, both in rankings.items()}
            yield from _ranking_entries(RETRIEVAL, split, by_row, f"{direction} R@")


def score_drawings(benchmark: ClassificationBenchmark, models: Models) -> list[ScoreEntry]:
    """Classification of one test set."""
    rankings = {
        row: benchmark.classify(chosen.encoder, chosen.class_templates)
        for row, chosen in models.items()
    }
    return list(_ranking_entries(CLASSIFICATION, benchmark.name, rankings, "top-"))


def _ranking_entries(
    task: str, split: str, rankings: Mapping[str, Ranking], metric: str
) -> Iterator[ScoreEntry]:
    """Yield each row at each depth, chance last; the depth is appended to `metric`."""
    student = rankings[STUDENT]
    rows: dict[str, tuple[Ranking, ...]] = {row: (own,) for row, own in rankings.items()}
    if SERVED in rankings:
        rows[GAIN] = (student, rankings[SERVED])
    metrics = {f"{metric}{depth}": found_within(depth) for depth in _DEPTHS}
    yield from score_entries(task, split, rows, metrics)
    chances = {f"{metric}{depth}": student.chance(depth) for depth in _DEPTHS}
    yield from _chances(task, split, chances, len(student))


def evaluate(
    folders: Mapping[str, Path], data: DataFolder, *, num_scenes: int
) -> tuple[ChosenEncoder, list[ScoreEntry]]:
    """Score a student on every test set.

    Args:
        folders: The model folder of each row; see `Models`.
        data: The data folder.
        num_scenes: Scenes per set; of the development sets at most 150.

    Returns:
        The student's encoder with the choices made for it, and all rows, task by task.
    """
    torch.set_num_threads(1)
    scenes = development_benchmarks(data, min(num_scenes, NUM_DEVELOPMENT))
    drawings = development_drawings(data)
    models = {
        row: choose(load_for_evaluation(folder), scenes, drawings)
        for row, folder in folders.items()
    }
    entries: list[ScoreEntry] = []
    for test_scenes in held_out_scenes(data, num_scenes):
        entries += score_scenes(test_scenes, models)
    for test_drawings in held_out_drawings(data, num_scenes):
        entries += score_drawings(test_drawings, models)
    return models[STUDENT], sorted(entries, key=lambda entry: TASKS.index(entry.task))
