"""All scores of a student for its model card, with those of its teacher and of baselines.

Features and templates are chosen on development sets; test sets are only scored.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from model.manifest import ScoreEntry
from model.scores.bootstrap import Interval, bootstrap
from model.scores.gate import GAIN, SERVED, STUDENT
from model.scores.ranking import Ranking, found_within
from training.data.folder import DataFolder
from training.evaluate.chosen_encoder import ChosenEncoder, Development, load_chosen
from training.evaluate.encoder import SceneEncoder
from training.evaluate.ranking import SETTINGS, ClassificationBenchmark, retrieve
from training.evaluate.sets import (
    SegmentationBenchmark,
    development_benchmarks,
    development_drawings,
    held_out_drawings,
    held_out_scenes,
)
from training.evaluate.zero_shot_segmentation import (
    SceneCounts,
    count_scenes,
    largest_object_scorer,
    painted_scorer,
)

SEGMENTATION = "zero-shot segmentation"
RETRIEVAL = "image-text retrieval"
CLASSIFICATION = "zero-shot classification"
TASKS = (SEGMENTATION, RETRIEVAL, CLASSIFICATION)
CHANCE = "chance"
PAINTED = "its CLS1 painted"
_DEPTHS = (1, 5)
_METRICS = {"mIoU": SceneCounts.miou, "which": SceneCounts.which}


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedModels:
    """The models to score.

    Attributes:
        student: The model that will be published.
        further: Students of the same recipe with other seeds.
        teacher: The student's teacher, if available.
        served: The model that the student would replace, if any.
        random: Random weights in the student's shape.
    """

    student: ChosenEncoder
    further: tuple[ChosenEncoder, ...] = ()
    teacher: ChosenEncoder | None = None
    served: ChosenEncoder | None = None
    random: ChosenEncoder

    def students(self) -> dict[str, ChosenEncoder]:
        """Students by the name of their row."""
        rows = {f"student, seed {i}": encoder for i, encoder in enumerate(self.further, start=1)}
        return {STUDENT: self.student, **rows}

    def rows(self) -> dict[str, ChosenEncoder]:
        """All models by the name of their row."""
        others = {"teacher": self.teacher, SERVED: self.served}
        known = {row: encoder for row, encoder in others.items() if encoder is not None}
        return {**self.students(), **known, "random weights": self.random}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    """Builds entries of one task on one split."""

    task: str
    split: str

    def entry(self, row: str, metric: str, value: Interval | float, *, count: int) -> ScoreEntry:
        """An entry with rounded values; a plain number (a closed form) has no interval."""
        numbers: dict[str, float] = {"value": value} if isinstance(value, float) else asdict(value)
        return ScoreEntry(
            task=self.task,
            split=self.split,
            row=row,
            metric=metric,
            count=count,
            **{key: round(number, 2) for key, number in numbers.items()},
        )


def score_scenes(benchmark: SegmentationBenchmark, models: ComparedModels) -> list[ScoreEntry]:
    """Segmentation of one test set, and retrieval if the set is used for it."""
    encoded = {
        row: SceneEncoder(chosen.encoder, benchmark.scenes) for row, chosen in models.rows().items()
    }
    entries = list(_segmentation_entries(benchmark, models, encoded))
    if benchmark.is_retrieved:
        entries += _retrieval_entries(benchmark, models, encoded)
    return entries


def _segmentation_counts(
    benchmark: SegmentationBenchmark,
    models: ComparedModels,
    encoded: Mapping[str, SceneEncoder],
) -> dict[str, SceneCounts]:
    counts = {}
    for row, encoder in models.rows().items():
        scenes = encoded[row]
        classes_KD = scenes.classes(benchmark.names, encoder.templates)
        counts[row] = benchmark.patch_counts(scenes, classes_KD, encoder.features)
        if row != "random weights":
            painted = painted_scorer(partial(scenes.feature, "cls1"), classes_KD)
            counts[f"{row}, {PAINTED}"] = count_scenes(benchmark.scenes, benchmark.names, painted)
    counts["largest object painted"] = count_scenes(
        benchmark.scenes, benchmark.names, largest_object_scorer(benchmark.names)
    )
    return counts


def _segmentation_entries(
    benchmark: SegmentationBenchmark,
    models: ComparedModels,
    encoded: Mapping[str, SceneEncoder],
) -> Iterator[ScoreEntry]:
    counts = _segmentation_counts(benchmark, models, encoded)
    guessed = counts["student"].guessed()
    table, count = _Table(task=SEGMENTATION, split=benchmark.name), len(benchmark.scenes)
    for row, its_counts in counts.items():
        for metric, score in _METRICS.items():
            yield table.entry(row, metric, bootstrap(score, its_counts), count=count)
    yield table.entry(CHANCE, "mIoU", guessed.miou(), count=count)
    yield table.entry(CHANCE, "which", guessed.which(), count=count)
    for row in models.students():
        known = {name: counts[name] for name in ("teacher", SERVED) if name in counts}
        others = {PAINTED: counts[f"{row}, {PAINTED}"], **known, CHANCE: guessed}
        for name, other in others.items():
            for metric, score in _METRICS.items():
                gain = bootstrap(score, counts[row], other)
                yield table.entry(f"{row} - {name}", metric, gain, count=count)


def _retrieval_entries(
    benchmark: SegmentationBenchmark,
    models: ComparedModels,
    encoded: Mapping[str, SceneEncoder],
) -> Iterator[ScoreEntry]:
    for setting in SETTINGS:
        split = f"{benchmark.name}; {setting.captions} captions, {setting.token.upper()}"
        table = _Table(task=RETRIEVAL, split=split)
        rankings = {
            row: retrieve(
                chosen.encoder, benchmark.scenes, features=encoded[row].features, setting=setting
            )
            for row, chosen in models.rows().items()
        }
        for direction in rankings["student"]:
            by_row = {row: both[direction] for row, both in rankings.items()}
            yield from _ranking_entries(table, by_row, f"{direction} R@")


def score_drawings(benchmark: ClassificationBenchmark, models: ComparedModels) -> list[ScoreEntry]:
    """Classification of one test set."""
    rankings = {
        row: benchmark.classify(chosen.encoder, chosen.class_templates)
        for row, chosen in models.rows().items()
    }
    table = _Table(task=CLASSIFICATION, split=benchmark.name)
    return list(_ranking_entries(table, rankings, "top-"))


def _ranking_entries(
    table: _Table, rankings: Mapping[str, Ranking], metric: str
) -> Iterator[ScoreEntry]:
    """Yield each row at each depth, chance last; the depth is appended to `metric`."""
    for row, ranking in rankings.items():
        for depth in _DEPTHS:
            interval = bootstrap(found_within(depth), ranking)
            yield table.entry(row, f"{metric}{depth}", interval, count=len(ranking))
    any_ranking = rankings[STUDENT]
    if SERVED in rankings:
        for depth in _DEPTHS:
            gain = bootstrap(found_within(depth), any_ranking, rankings[SERVED])
            yield table.entry(GAIN, f"{metric}{depth}", gain, count=len(any_ranking))
    for depth in _DEPTHS:
        value = any_ranking.chance(depth)
        yield table.entry(CHANCE, f"{metric}{depth}", value, count=len(any_ranking))


def evaluate(
    student: Path,
    teacher: Path | None,
    data: DataFolder,
    *,
    further: Sequence[Path] = (),
    served: Path | None = None,
    num_scenes: int = 500,
) -> tuple[ChosenEncoder, list[ScoreEntry]]:
    """Score a student on every test set.

    Args:
        student: The model's folder.
        teacher: Its teacher's folder; None omits the teacher's rows.
        data: The data folder.
        further: Models of the same recipe with other seeds.
        served: The model that the student would replace; None omits its rows.
        num_scenes: Scenes per set.

    Returns:
        The student's encoder with the choices made for it, and all rows, task by task.
    """
    development = Development(
        scenes=development_benchmarks(data), drawings=development_drawings(data)
    )
    models = ComparedModels(
        student=load_chosen(student, development),
        further=tuple(load_chosen(folder, development) for folder in further),
        teacher=None if teacher is None else load_chosen(teacher, development),
        served=None if served is None else load_chosen(served, development),
        random=load_chosen(student, development, is_random=True),
    )
    entries: list[ScoreEntry] = []
    for scenes in held_out_scenes(data, num_scenes):
        entries += score_scenes(scenes, models)
    for drawings in held_out_drawings(data, num_scenes):
        entries += score_drawings(drawings, models)
    return models.student, sorted(entries, key=lambda entry: TASKS.index(entry.task))


def write_scores(folder: Path, entries: Iterable[ScoreEntry]) -> None:
    """Write `scores.json` as export expects it."""
    rows = [entry.model_dump() for entry in entries]
    (folder / "scores.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
