"""The named sets of evaluation scenes and drawings."""

from training.data.folder import DataFolder, common_names
from training.evaluate import sets
from training.evaluate.sets import SegmentationBenchmark, development_benchmarks, rare_names


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
