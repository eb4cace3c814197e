"""View scenes: every drawing once in a pass, the same scene for the same number."""

import numpy as np

from training.photographs.drawing_scenes import PER_SCENE, ViewSource
from training.photographs.drawings import NamedDrawings, withheld
from training.photographs.trunk_features import covered_cells


def source() -> ViewSource:
    """Six coloured squares."""
    rgba = np.zeros((6, 96, 96, 4), np.uint8)
    rgba[:, 8:88, 8:88, 3] = 255
    rgba[..., :3] = np.linspace(0, 250, 6, dtype=np.uint8)[:, None, None, None]
    drawings = NamedDrawings(
        rgba_MSS4=rgba, name_M=np.arange(6), names=tuple(f"name {i}" for i in range(6))
    )
    return ViewSource(drawings=drawings, photos=(), size=128)


def test_a_pass_shows_every_drawing_once() -> None:
    views = source()
    assert views.scenes_per_pass == 2
    shown = [set(np.unique(views.scene(i)[1])) - {0} for i in range(2)]
    assert all(len(names) <= PER_SCENE for names in shown)
    assert not shown[0] & shown[1]


def test_a_scene_is_a_function_of_its_number() -> None:
    pixels, mask = source().scene(3)
    again, same_mask = source().scene(3)
    assert np.array_equal(pixels, again)
    assert np.array_equal(mask, same_mask)
    assert pixels.shape == (128, 128, 3)
    assert not np.array_equal(pixels, source().scene(1)[0])


def test_cells_are_taken_where_an_object_covers_half() -> None:
    mask = np.zeros((128, 128), np.int32)
    mask[:64, :64] = 3
    mask[100:104, 100:104] = 5  # smaller than a cell: its best cell is taken
    found = covered_cells(mask, np.random.default_rng(0))
    assert sorted(found) == [(0, 0, 2), (0, 1, 2), (1, 0, 2), (1, 1, 2), (3, 3, 4)]


def test_the_twin_lacks_names_of_the_hash_split() -> None:
    assert withheld(["lion", "dog face", "tiger face", "Lion cub"]).tolist() == [
        True, False, True, True,
    ]  # fmt: skip
