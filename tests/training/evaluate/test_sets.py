"""The named sets of evaluation scenes and drawings."""

from dataclasses import replace
from functools import partial

import pytest

from model.encoder import Tipsv2Encoder
from training.data.concepts import all_concepts
from training.data.folder import DataFolder, common_names, seen_names
from training.data.scenes import Scene, SceneSource, compose_scene
from training.evaluate import sets
from training.evaluate.encoder import SceneEncoder
from training.evaluate.sets import (
    SegmentationBenchmark,
    development_benchmarks,
    rare_names,
)
from training.evaluate.zero_shot_segmentation import count_scenes, painted_scorer, patch_scorer


def test_the_rarer_names_are_fifty_seen_names_but_no_everyday_words() -> None:
    rare = [concept for concept in all_concepts() if concept.name in rare_names()]
    assert len(rare) == 50
    assert rare_names(10) < rare_names()
    assert not [concept for concept in rare if concept.is_unseen or concept.is_common]
    assert all(concept.drawings for concept in rare)


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
        assert {len(scene.drawings) for scene in benchmark.scenes} == {2, 3}
        assert list(benchmark.names) == sorted(benchmark.names)
        for scene in benchmark.scenes:
            assert set(scene.captions.names) <= set(benchmark.names)
            assert {bool(styles_M[row] == fluent) for row in scene.drawings} == {expected}


def test_a_quick_score_is_the_score_beside_chance(
    encoder: Tipsv2Encoder, scenes: list[Scene], names: list[str]
) -> None:
    benchmark = SegmentationBenchmark(name="quick", scenes=scenes, names=names)
    guessed = benchmark.chance()
    assert guessed.truth_SK.sum() == sum((scene.mask_SS > 0).sum() for scene in scenes)
    assert 0 < guessed.miou() <= 100 / (2 * len(names) - 1)
    assert 100 / 3 <= guessed.which() <= 50
    row = benchmark.quick_scores(encoder)
    encoded = SceneEncoder(encoder, scenes)
    classes_KD = encoded.classes(names, "none")
    for kind in ("patches", "values"):
        scorer = patch_scorer(partial(encoded.feature, kind), classes_KD)
        counts = count_scenes(scenes, names, scorer)
        assert row[f"quick/{kind}"] == pytest.approx(counts.miou(), abs=0.005)
        assert row[f"quick/{kind}_which"] == pytest.approx(counts.which(), abs=0.005)
    painted = painted_scorer(partial(encoded.feature, "cls1"), classes_KD)
    expected = count_scenes(scenes, names, painted).miou()
    assert row["quick/painted"] == pytest.approx(expected, abs=0.005)
    assert len(row) == 5


def _styles(data: DataFolder, benchmark: SegmentationBenchmark) -> set[str]:
    bank = data.bank()
    rows = [row for scene in benchmark.scenes for row in scene.drawings]
    return {bank.styles[bank.style_M[row]] for row in rows}


def test_the_scenes_show_what_the_names_of_their_sets_say(data_folder: DataFolder) -> None:
    main, rarer, seen, line, unseen = sets.held_out_scenes(data_folder, 3)
    assert "unseen style" in main.name
    assert set(main.names) == set(seen.names) == common_names()
    assert set(rarer.names) == rare_names()
    assert _styles(data_folder, main) == _styles(data_folder, rarer) == {"fluent-3d"}
    assert _styles(data_folder, line) == {"openmoji"}
    trained = _styles(data_folder, seen) | _styles(data_folder, unseen)
    assert trained <= {"noto", "twemoji", "noto-v1", "emojione"}
    assert not set(unseen.names) & (set(main.names) | set(rarer.names))
    assert [s for s in (main, rarer, seen, line, unseen) if s.is_retrieved] == [main, seen]


def test_the_drawings_show_what_the_names_of_their_sets_say(data_folder: DataFolder) -> None:
    everyday, every, seen, line, unseen, both = sets.held_out_drawings(data_folder, 3)
    assert everyday.name == "Fluent 3D (unseen style), one of 50 everyday names"
    for benchmark in (everyday, seen, line):
        assert set(benchmark.names) == common_names()
        assert set(benchmark.labels) <= common_names()
        assert len(benchmark.images) >= 8
    assert common_names() | rare_names() < set(every.names) <= seen_names()
    for benchmark in (unseen, both):
        assert set(benchmark.names) == sets.unseen_names()
        assert not set(benchmark.names) & seen_names()
        assert len(set(benchmark.labels)) == 4
    for first, second in ((everyday, line), (everyday, seen), (unseen, both)):
        assert not {i.tobytes() for i in first.images} & {i.tobytes() for i in second.images}


def test_development_uses_no_test_drawing_of_the_unseen_style(data_folder: DataFolder) -> None:
    seen, style = sets.development_drawings(data_folder)
    assert (seen.name, style.name) == ("val", "val-style")
    assert set(style.labels) <= rare_names() == set(style.names)
    used = {image.tobytes() for image in style.images}
    for benchmark in sets.held_out_drawings(data_folder, 2):
        assert not used & {image.tobytes() for image in benchmark.images}


def test_stamps_are_classified_alone_and_in_scenes(
    source: SceneSource, data_folder: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    stamps = replace(source, styles=("openmoji",), names=common_names(), split="test")
    monkeypatch.setattr(DataFolder, "stamp_source", lambda _: stamps)
    *_, alone, placed = sets.held_out_drawings(data_folder, 5)
    assert alone.name == "photo stamps of Tux Paint, one of 50 names"
    assert sorted(alone.labels) == sorted(common_names() & set(alone.labels))
    assert len(alone.labels) == 8
    scenes = [compose_scene(stamps, index, sets._ALONE) for index in range(5)]
    assert list(placed.labels) == [scene.captions.names[0] for scene in scenes]
    assert all((i == s.pixels_SS3).all() for i, s in zip(placed.images, scenes, strict=True))
    assert set(alone.names) == set(placed.names) == common_names()
    *_, last = sets.held_out_scenes(data_folder, 2)
    assert last.name == "photo stamps of Tux Paint, 50 names, 8 of them shown"
    assert last.is_retrieved
