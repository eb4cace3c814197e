"""Quick scores of the development sets."""

from pathlib import Path

import pytest

from model.encoder import Tipsv2Encoder
from training.data.folder import DataFolder
from training.evaluate.quick import CHANCE, quick_scores
from training.evaluate.sets import development_benchmarks, development_drawings


def test_quick_scores_are_those_of_the_development_sets_beside_chance(
    folder: Path, encoder: Tipsv2Encoder, data_folder: DataFolder
) -> None:
    table = quick_scores([folder], data_folder, num_scenes=3)
    values = {key: row[str(folder)] for key, row in table.items()}
    expected: dict[str, float] = {}
    for scenes in development_benchmarks(data_folder, 3):
        expected |= scenes.quick_scores(encoder)
    for images in development_drawings(data_folder):
        ranking = images.classify(encoder, "none")
        expected[f"{images.name}/top-1"] = ranking.found(1)
    assert values == pytest.approx(expected, abs=0.011)
    assert len(values) == 12
    chance = {key: row[CHANCE] for key, row in table.items()}
    assert chance["val/top-1"] == chance["val-style/top-1"] == 2.0
    assert chance["val/patches"] == chance["val/values"] == chance["val/painted"] < 2.0
    assert 33 <= chance["val/patches_which"] <= 50
