"""Drawn scenes as inputs: their words, their batches, what identifies them."""

from dataclasses import replace
from functools import partial

import pytest
from transformers import Tipsv2Tokenizer

from training.config import TrainingConfig
from training.data.batch import RunShare
from training.data.folder import DataFolder, seen_names
from training.data.loader import SceneBatches
from training.evaluate.sets import development_benchmarks
from training.inputs import scenes
from training.run import open_inputs


@pytest.fixture
def config(
    tiny_config: TrainingConfig, data_folder: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> TrainingConfig:
    """The tiny run on the drawn data."""
    monkeypatch.setattr(scenes, "_TOKENIZER_SCENES", 5)
    few = partial(development_benchmarks, num_scenes=2)
    monkeypatch.setattr(scenes, "development_benchmarks", few)
    return replace(tiny_config, data=replace(tiny_config.data, folder=data_folder.path))


def test_names_are_frequent_among_the_words_and_scenes_are_scored(config: TrainingConfig) -> None:
    inputs = open_inputs(config)
    assert len(inputs.tokenizer_texts()) == 3 * 5 + 40 * len(seen_names())
    prompts = inputs.warm_up_texts()
    assert "art of the dog." in prompts
    assert len(set(prompts)) == len(prompts)
    assert [benchmark.name for benchmark in inputs.benchmarks()] == ["val", "val-style"]


def test_the_batches_are_the_ranks_share(
    config: TrainingConfig, tokenizer: Tipsv2Tokenizer
) -> None:
    inputs = open_inputs(config)
    batches = inputs.batches(tokenizer, RunShare(batch_size=3, num_steps=8, rank=1, num_ranks=2))
    assert isinstance(batches, SceneBatches)
    assert len(batches) == 8
    alone = inputs.batches(tokenizer, RunShare(batch_size=6, num_steps=8))
    assert isinstance(alone, SceneBatches)
    assert (batches[2].pixels_B3HW == alone[2].pixels_B3HW[3:]).all()
