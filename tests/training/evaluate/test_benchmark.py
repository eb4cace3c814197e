"""Benchmarks: scenes of several objects, names apart from the test's, a quick score."""

from functools import partial

import numpy as np
import pytest
from transformers import Tipsv2Model, Tipsv2Tokenizer

from training.data.concepts import all_concepts
from training.data.folder import DataFolder, common_names
from training.data.scenes import Scene, SceneSource
from training.evaluate.encoder import SceneEncoder
from training.evaluate.sets import (
    MULTI_OBJECT,
    PATCH,
    SegmentationBenchmark,
    development_benchmarks,
    make_benchmark,
    rare_names,
)
from training.evaluate.zero_shot_segmentation import count_scenes, painted_scorer, patch_scorer


def test_the_rarer_names_are_fifty_seen_words_of_no_everyday_use() -> None:
    concepts = {concept.name: concept for concept in all_concepts()}
    assert len(rare_names()) == 50
    assert rare_names(10) < rare_names()
    for name in rare_names():
        assert not concepts[name].is_unseen
        assert not concepts[name].is_common
        assert concepts[name].drawings


def test_scenes_have_two_or_three_objects(source: SceneSource) -> None:
    benchmark = make_benchmark("b", source, 12)
    assert len(benchmark.scenes) == 12
    assert {len(scene.drawings) for scene in benchmark.scenes} == {2, 3}
    assert MULTI_OBJECT.augment.warp == 0
    assert list(benchmark.names) == sorted(source.names)
    again = make_benchmark("b", source, 12)
    for first, second in zip(benchmark.scenes, again.scenes, strict=True):
        assert np.array_equal(first.pixels_SS3, second.pixels_SS3)


def test_decisions_are_made_on_other_names_or_styles_than_the_tests(
    data_folder: DataFolder,
) -> None:
    seen, style = development_benchmarks(data_folder, num_scenes=6)
    assert (seen.name, style.name) == ("val", "val-style")
    assert set(seen.names) <= common_names()
    assert not set(style.names) & common_names()
    fluent = data_folder.bank().styles.index("fluent-3d")
    styles_M = data_folder.bank().style_M
    for benchmark, expected in ((seen, False), (style, True)):
        for scene in benchmark.scenes:
            assert set(scene.captions.names) <= set(benchmark.names)
            assert {bool(styles_M[row] == fluent) for row in scene.drawings} == {expected}


def test_a_quick_score_is_the_score(
    encoder_model: Tipsv2Model, tokenizer: Tipsv2Tokenizer, scenes: list[Scene], names: list[str]
) -> None:
    benchmark = SegmentationBenchmark(name="quick", scenes=scenes, names=names)
    row = benchmark.quick_scores(encoder_model, tokenizer)
    encoder = SceneEncoder(encoder_model, tokenizer, scenes)
    classes_KD = encoder.classes(names, "none")
    for kind in ("patches", "values"):
        scorer = patch_scorer(partial(encoder.feature, kind), classes_KD, PATCH)
        counts = count_scenes(scenes, names, scorer)
        assert row[f"quick/{kind}"] == pytest.approx(counts.miou(), abs=0.005)
        assert row[f"quick/{kind}_which"] == pytest.approx(counts.which(), abs=0.005)
    painted = painted_scorer(partial(encoder.feature, "cls1"), classes_KD)
    expected = count_scenes(scenes, names, painted).miou()
    assert row["quick/painted"] == pytest.approx(expected, abs=0.005)
    assert len(row) == 5


def test_chance_is_that_of_the_scenes_and_names(scenes: list[Scene], names: list[str]) -> None:
    benchmark = SegmentationBenchmark(name="b", scenes=scenes, names=names)
    guessed = benchmark.chance()
    assert guessed.truth_SK.sum() == sum((scene.mask_SS > 0).sum() for scene in scenes)
    assert 0 < guessed.miou() <= 100 / (2 * len(names) - 1)
    assert 100 / 3 <= guessed.which() <= 50
