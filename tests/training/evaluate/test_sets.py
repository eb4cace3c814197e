"""The named sets of evaluation scenes and drawings."""

from dataclasses import replace

import pytest

from model.encoder import Tipsv2Encoder
from training.data.concepts import all_concepts
from training.data.folder import DataFolder, common_names, seen_names
from training.data.scenes import Scene, SceneSource
from training.evaluate import sets
from training.evaluate.encoder import encode_names
from training.evaluate.sets import SegmentationBenchmark, development_benchmarks, rare_names


def test_the_rarer_names_are_fifty_seen_names_but_no_everyday_words() -> None:
    rare = [concept for concept in all_concepts() if concept.name in rare_names()]
    assert len(rare) == 50
    assert not [concept for concept in rare if concept.is_unseen or concept.is_common]
    assert all(concept.drawings for concept in rare)


def test_a_quick_score_is_that_of_each_kind_of_features(
    encoder: Tipsv2Encoder, scenes: list[Scene], names: list[str]
) -> None:
    benchmark = SegmentationBenchmark(name="quick", scenes=scenes, names=names)
    features, classes_KD = benchmark.encode(encoder), encode_names(encoder, names, "none")
    row = benchmark.quick_scores(encoder)
    for kind, key in (("patches", "patches"), ("values", "values"), ("cls1", "painted")):
        counts = benchmark.count(features[kind], classes_KD)
        assert row[f"quick/{key}"] == pytest.approx(counts.miou(), abs=0.005)
        if key != "painted":
            assert row[f"quick/{key}_which"] == pytest.approx(counts.which(), abs=0.005)
    assert len(row) == 5


def styles_of(data: DataFolder, benchmark: SegmentationBenchmark) -> set[str]:
    bank = data.bank()
    rows = [row for scene in benchmark.scenes for row in scene.drawings]
    return {bank.styles[bank.style_M[row]] for row in rows}


def test_the_scenes_show_what_the_names_of_their_sets_say(data_folder: DataFolder) -> None:
    main, rarer, seen, line, unseen = sets.held_out_scenes(data_folder, 3)
    assert "unseen style" in main.name
    assert set(main.names) == set(seen.names) == common_names()
    assert set(rarer.names) == rare_names()
    assert styles_of(data_folder, main) == styles_of(data_folder, rarer) == {"fluent-3d"}
    assert styles_of(data_folder, line) == {"openmoji"}
    trained = styles_of(data_folder, seen) | styles_of(data_folder, unseen)
    assert trained <= {"noto", "twemoji", "noto-v1", "emojione"}
    assert not set(unseen.names) & (set(main.names) | set(rarer.names))
    assert [s for s in (main, rarer, seen, line, unseen) if s.is_retrieved] == [main, seen]


def test_decisions_are_made_on_other_names_styles_and_drawings_than_the_tests(
    data_folder: DataFolder,
) -> None:
    seen, style = development_benchmarks(data_folder, num_scenes=6)
    assert set(seen.names) <= common_names()
    assert not set(style.names) & common_names()
    assert "fluent-3d" not in styles_of(data_folder, seen)
    assert styles_of(data_folder, style) == {"fluent-3d"}
    _, drawings = sets.development_drawings(data_folder)
    assert set(drawings.labels) <= rare_names() == set(drawings.names)
    used = {image.tobytes() for image in drawings.images}
    for benchmark in sets.held_out_drawings(data_folder, 2):
        assert not used & {image.tobytes() for image in benchmark.images}


def test_the_drawings_show_what_the_names_of_their_sets_say(data_folder: DataFolder) -> None:
    everyday, every, seen, line, unseen, both = sets.held_out_drawings(data_folder, 3)
    assert everyday.name == "Fluent 3D (unseen style), one of 50 everyday names"
    for benchmark in (everyday, seen, line):
        assert set(benchmark.labels) <= set(benchmark.names) == common_names()
    assert common_names() | rare_names() < set(every.names) <= seen_names()
    for benchmark in (unseen, both):
        assert not set(benchmark.names) & seen_names()
        assert len(set(benchmark.labels)) == 4
    for first, second in ((everyday, line), (everyday, seen), (unseen, both)):
        assert not {i.tobytes() for i in first.images} & {i.tobytes() for i in second.images}


def test_stamps_are_classified_alone_and_in_scenes(
    source: SceneSource, data_folder: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    stamps = replace(source, styles=("openmoji",), names=common_names(), split="test")
    monkeypatch.setattr(DataFolder, "stamp_source", lambda _: stamps)
    *_, alone, placed = sets.held_out_drawings(data_folder, 5)
    assert alone.name == "photo stamps of Tux Paint, one of 50 names"
    assert len(alone.labels) == 8
    assert len(placed.labels) == len(placed.images) == 5
    assert set(alone.names) == set(placed.names) == common_names()
    *_, last = sets.held_out_scenes(data_folder, 2)
    assert last.name == "photo stamps of Tux Paint, 50 names, 8 of them shown"
    assert last.is_retrieved
