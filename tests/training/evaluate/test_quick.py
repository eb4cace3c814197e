"""Quick numbers: those of the development sets, chance beside them, a model not yet there named."""

from pathlib import Path

import pytest
from transformers import Tipsv2Model, Tipsv2Tokenizer

from training.data.folder import DataFolder
from training.evaluate.quick import CHANCE, quick_scores, render_table
from training.evaluate.sets import development_benchmarks, development_drawings


@pytest.fixture
def folder(encoder_model: Tipsv2Model, tokenizer: Tipsv2Tokenizer, tmp_path: Path) -> Path:
    """A saved model with its tokenizer."""
    encoder_model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_they_are_the_scores_of_the_development_sets(
    folder: Path, encoder_model: Tipsv2Model, tokenizer: Tipsv2Tokenizer, data_folder: DataFolder
) -> None:
    table = quick_scores([folder], data_folder, num_scenes=3)
    values = {key: row[str(folder)] for key, row in table.items()}
    expected: dict[str, float] = {}
    for scenes in development_benchmarks(data_folder, 3):
        expected |= scenes.quick_scores(encoder_model, tokenizer)
    for images in development_drawings(data_folder):
        ranking = images.classify(encoder_model, tokenizer, "none")
        expected[f"{images.name}/top-1"] = ranking.found(1)
    assert values == pytest.approx(expected, abs=0.011)
    assert len(values) == 12


def test_every_number_has_its_chance(folder: Path, data_folder: DataFolder) -> None:
    table = quick_scores([folder], data_folder, num_scenes=3)
    chance = {key: row[CHANCE] for key, row in table.items()}
    assert chance["val/top-1"] == chance["val-style/top-1"] == 2.0
    assert chance["val/patches"] == chance["val/values"] == chance["val/painted"] < 2.0
    assert 33 <= chance["val/patches_which"] <= 50


def test_a_run_that_has_saved_nothing_is_named(tmp_path: Path, data_folder: DataFolder) -> None:
    with pytest.raises(FileNotFoundError, match="nothing has no model yet"):
        quick_scores([tmp_path / "nothing"], data_folder)


def test_the_table_has_a_line_for_each_number_and_a_column_for_each_model() -> None:
    table = {"val/patches": {"chance": 1.0, "a": 20.0}, "val/top-1": {"chance": 2.0, "a": 7.125}}
    assert render_table(table).splitlines() == [
        "             chance      a",
        "val/patches    1.00  20.00",
        "val/top-1      2.00   7.12",
    ]
