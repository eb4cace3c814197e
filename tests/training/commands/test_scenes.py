"""`python -m training scenes`: what it writes is what `tipserve evaluate` reads."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from model.labelled.sets import read_segmentation
from model.scores.objects import objects_of
from model.scores.pixels import BACKGROUND
from training.commands.scenes import write_scenes
from training.data.concepts import all_concepts
from training.data.scenes import SceneSource, compose_scene
from training.evaluate.sets import MULTI_OBJECT


def test_written_scenes_have_the_names_and_masks_of_the_composed_ones(
    source: SceneSource, tmp_path: Path
) -> None:
    source = replace(source, split="test")
    write_scenes(tmp_path, source, 3, 56)
    places = tmp_path / "images", tmp_path / "masks", tmp_path / "names.txt"
    given = read_segmentation(*places, reduce_zero_label=True)
    concepts = all_concepts()
    for index in range(3):
        scene = compose_scene(source, index, replace(MULTI_OBJECT, size=56))
        truth_SS = given.read_objects(index)
        assert truth_SS is not None
        assert np.array_equal(truth_SS == BACKGROUND, scene.mask_SS == 0)
        for label in objects_of(truth_SS):
            (number,) = np.unique(scene.mask_SS[truth_SS == label])
            assert concepts[number - 1].name == given.names[label]
