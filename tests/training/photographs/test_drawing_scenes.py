"""Scenes of named drawings: every drawing once in a pass, the same scene for the same number."""

import numpy as np
import pytest

from tests.training.photographs.miniature import NAMES, bank, drawings, squares, view_source
from training.data.concepts import all_concepts
from training.photographs.drawing_scenes import PER_SCENE, CrowdSource, ViewSource
from training.photographs.drawings import withheld
from training.photographs.encoder import all_names
from training.photographs.trunk_features import covered_cells


@pytest.fixture
def views() -> ViewSource:
    return view_source()


def test_a_pass_shows_every_drawing_once(views: ViewSource) -> None:
    assert views.scenes_per_pass == 2
    shown = [set(np.unique(views.scene(i)[1])) - {0} for i in range(2)]
    assert all(len(names) <= PER_SCENE for names in shown)
    assert set.union(*shown) == set(range(1, 7))
    assert not shown[0] & shown[1]


def test_scenes_are_functions_of_their_numbers(views: ViewSource) -> None:
    crowds = CrowdSource(
        rgba_MSS4=squares(4), label_M=np.arange(4), photos=(), size=128, scenes_per_part=3
    )
    for scene in (views.scene, lambda number: crowds.part(number)[0]):
        (pixels, mask), (again, same_mask), (other, _) = scene(3), scene(3), scene(1)
        assert np.array_equal(pixels, again)
        assert np.array_equal(mask, same_mask)
        assert pixels.shape == (128, 128, 3)
        assert mask.max() > 0
        assert not np.array_equal(pixels, other)
    assert len(crowds.part(1)) == 3


def test_crowds_show_further_drawings_of_known_names_only() -> None:
    index = {name: number for number, name in enumerate(NAMES)}
    views = ViewSource(drawings=drawings(4), photos=(), size=64)
    crowds = CrowdSource.of(views, bank(), index, first_concept=100, scenes_per_part=1)
    dog = [concept.name for concept in all_concepts()].index("dog")
    assert crowds.label_M.tolist() == [0, 1, 2, 3, 100 + dog]
    assert len(crowds.rgba_MSS4) == 5


def test_cells_are_taken_where_an_object_covers_half() -> None:
    mask = np.zeros((128, 128), np.int32)
    mask[:64, :64] = 3
    mask[100:104, 100:104] = 5  # smaller than a cell: its best cell is taken
    found = covered_cells(mask, np.random.default_rng(0))
    assert sorted(found) == [(0, 0, 2), (0, 1, 2), (1, 0, 2), (1, 1, 2), (3, 3, 4)]


def test_drawings_come_first_and_the_twin_lacks_names_of_the_hash_split() -> None:
    assert all_names(NAMES)[: len(NAMES)] == NAMES
    names = ["lion", "dog face", "tiger face", "Lion cub"]
    assert withheld(names).tolist() == [True, False, True, True]
