"""A few development scores of runs, also of unfinished ones. Uses no test set."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from training.data.folder import DataFolder
from training.evaluate.encoder import load_for_evaluation
from training.evaluate.ranking import ClassificationBenchmark
from training.evaluate.sets import (
    SegmentationBenchmark,
    development_benchmarks,
    development_drawings,
)

CHANCE = "chance"
_NUM_SCENES = 150


def quick_scores(
    models: Sequence[Path], data: DataFolder, *, num_scenes: int = _NUM_SCENES
) -> dict[str, dict[str, float]]:
    """Score models on the development sets: under 40 s for the first, under 10 for each further.

    Args:
        models: Folders that `Encoder.save` wrote.
        data: The data folder.
        num_scenes: Scenes per set.

    Returns:
        For each score, its value by the path of the model, and "chance".

    Raises:
        FileNotFoundError: A folder has no model.
    """
    missing = [folder for folder in models if not (folder / "config.json").exists()]
    if missing:
        raise FileNotFoundError(f"{missing[0]} has no model yet; wait for the next validation")
    scenes = development_benchmarks(data, num_scenes)
    drawings = development_drawings(data)
    table = _chance(scenes, drawings)
    for folder in models:
        encoder = load_for_evaluation(folder)
        for benchmark in scenes:
            for key, value in benchmark.quick_scores(encoder).items():
                table[key][str(folder)] = value
        for images in drawings:
            found = images.classify(encoder, "none").found(1)
            table[f"{images.name}/top-1"][str(folder)] = round(found, 2)
    return table


def _chance(
    scenes: Sequence[SegmentationBenchmark], drawings: Sequence[ClassificationBenchmark]
) -> dict[str, dict[str, float]]:
    table = {}
    for benchmark in scenes:
        guessed = benchmark.chance()
        miou, which = round(guessed.miou(), 2), round(guessed.which(), 2)
        for kind in ("patches", "values"):
            table[f"{benchmark.name}/{kind}"] = {CHANCE: miou}
            table[f"{benchmark.name}/{kind}_which"] = {CHANCE: which}
        table[f"{benchmark.name}/painted"] = {CHANCE: miou}
    for images in drawings:
        table[f"{images.name}/top-1"] = {CHANCE: round(100 / len(images.names), 2)}
    return table


def render_table(table: Mapping[str, Mapping[str, float]]) -> str:
    """Format the scores as a table with one column per model."""
    columns = list(dict.fromkeys(column for row in table.values() for column in row))
    lines = [["", *columns]]
    lines += [[key, *(f"{row[column]:.2f}" for column in columns)] for key, row in table.items()]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns) + 1)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(map(str.rjust, line[1:], widths[1:]))])
        for line in lines
    )
