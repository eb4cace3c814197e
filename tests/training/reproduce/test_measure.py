"""Measuring a model: which arrays, on which scenes, and perfect retrieval found perfect."""

from pathlib import Path

import numpy as np
import pytest
from transformers import Tipsv2Model, Tipsv2Tokenizer

from training.data.folder import DataFolder
from training.evaluate.zero_shot_segmentation import SceneCounts
from training.reproduce.runner import (
    KINDS,
    LARGEST,
    PAINTED,
    RETRIEVAL,
    Benchmarks,
    counts_of,
    load_measures,
    make_benchmarks,
    measure,
    save_measures,
)


@pytest.fixture
def benchmarks(data_folder: DataFolder) -> Benchmarks:
    """Four scenes a set."""
    return make_benchmarks(data_folder, size=28, num_scenes=4)


def test_every_scene_shows_two_or_three_things(benchmarks: Benchmarks) -> None:
    for benchmark in benchmarks.all():
        for scene in benchmark.scenes:
            assert len(np.unique(scene.mask_SS[scene.mask_SS > 0])) in (2, 3)


def test_the_sets_are_different_scenes(benchmarks: Benchmarks) -> None:
    first = [benchmark.scenes[0].pixels_SS3 for benchmark in benchmarks.all()]
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(first[1], first[2])


def test_all_rows_are_measured_and_kept(
    benchmarks: Benchmarks,
    student_model: Tipsv2Model,
    tokenizer: Tipsv2Tokenizer,
    tmp_path: Path,
) -> None:
    measures = measure(student_model.eval(), tokenizer, benchmarks)
    save_measures(measures, tmp_path / "measures.npz")
    again = load_measures(tmp_path / "measures.npz")
    assert set(again) == set(measures)
    for scenes in ("val", "seen", "unseen"):
        for row in (*KINDS, PAINTED, LARGEST):
            counts = counts_of(again, scenes, row)
            assert len(counts) == (2 if scenes == "val" else 4)
            assert counts.truth_SK.sum() == counts.called_SK.sum()
        assert (
            counts_of(again, scenes, LARGEST).which() > counts_of(again, scenes, "chance").which()
        )
        for direction in RETRIEVAL:
            assert set(again[f"{scenes}/retrieval/{direction}"]) <= {0.0, 1.0}


def test_an_oracle_for_one_object_hits_that_object(
    benchmarks: Benchmarks, student_model: Tipsv2Model, tokenizer: Tipsv2Tokenizer
) -> None:
    measures = measure(student_model.eval(), tokenizer, benchmarks)
    largest: SceneCounts = counts_of(measures, "seen", LARGEST)
    assert np.array_equal(largest.hit_SK.sum(1), largest.truth_SK.max(1))
