"""The named sets: what they show, what their names say, and that decisions look elsewhere."""

import pytest

from training.data.folder import DataFolder, common_names, seen_names
from training.data.scenes import SceneSource
from training.data.sprites import SpriteBank
from training.evaluate import sets
from training.evaluate.sets import SegmentationBenchmark, rare_names


def _styles(data: DataFolder, benchmark: SegmentationBenchmark) -> set[str]:
    bank = data.bank()
    rows = [row for scene in benchmark.scenes for row in scene.drawings]
    return {bank.styles[bank.style_M[row]] for row in rows}


def test_the_scenes_hold_what_their_names_say(data_folder: DataFolder) -> None:
    main, rarer, seen, line, unseen = sets.held_out_scenes(data_folder, 3)
    assert "unseen style" in main.name
    assert set(main.names) == set(seen.names) == common_names()
    assert set(rarer.names) == rare_names()
    assert _styles(data_folder, main) == _styles(data_folder, rarer) == {"fluent-3d"}
    assert _styles(data_folder, line) == {"openmoji"}
    trained = _styles(data_folder, seen) | _styles(data_folder, unseen)
    assert trained <= {"noto", "twemoji", "noto-v1", "emojione"}
    assert not set(unseen.names) & (set(main.names) | set(rarer.names))
    retrieved = [
        benchmark for benchmark in (main, rarer, seen, line, unseen) if benchmark.is_retrieved
    ]
    assert retrieved == [main, seen]


def test_the_drawings_hold_what_their_names_say(data_folder: DataFolder) -> None:
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
    images = {"everyday": everyday, "line": line, "seen": seen, "unseen": unseen, "both": both}
    shown = {key: {p.tobytes() for p in found.images} for key, found in images.items()}
    assert not shown["everyday"] & shown["line"]
    assert not shown["everyday"] & shown["seen"]
    assert not shown["unseen"] & shown["both"]


def test_no_test_drawing_is_looked_at_in_development_in_its_style(
    data_folder: DataFolder,
) -> None:
    seen, style = sets.development_drawings(data_folder)
    assert (seen.name, style.name) == ("val", "val-style")
    assert set(style.labels) <= rare_names() == set(style.names)
    looked_at = {image.tobytes() for image in style.images}
    for benchmark in sets.held_out_drawings(data_folder, 2):
        assert not looked_at & {image.tobytes() for image in benchmark.images}


def test_stamps_are_classified_alone_and_in_scenes(
    sprite_bank: SpriteBank, data_folder: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    stamps = SceneSource(
        bank=sprite_bank,
        styles=("openmoji",),
        photos=(),
        keywords={},
        names=common_names(),
        split="test",
    )
    monkeypatch.setattr(DataFolder, "stamp_source", lambda _: stamps)
    *_, alone, placed = sets.held_out_drawings(data_folder, 5)
    assert alone.name == "photo stamps of Tux Paint, one of 50 names"
    assert sorted(alone.labels) == sorted(common_names() & set(alone.labels))
    assert len(alone.labels) == 8
    assert len(placed.labels) == len(placed.images) == 5
    assert set(alone.names) == set(placed.names) == common_names()
    *_, scenes = sets.held_out_scenes(data_folder, 2)
    assert scenes.name == "photo stamps of Tux Paint, 50 names"
    assert scenes.is_retrieved
