"""Single drawings: every one once, whole, on a plain ground; ranked by CLS1 among the names."""

from dataclasses import replace

import numpy as np
import pytest
from transformers import Tipsv2Model, Tipsv2Tokenizer

from training.data.scenes import SceneConfig, SceneSource, compose_scene
from training.data.sprites import SpriteBank
from training.evaluate.encoder import encode_images, encode_names
from training.evaluate.ranking import (
    IMAGE_SIZE,
    ClassificationBenchmark,
    plain_images,
    single_drawings,
    single_object_scenes,
)


@pytest.fixture
def benchmark(sprite_bank: SpriteBank, source: SceneSource) -> ClassificationBenchmark:
    """All drawings of the source's names in one style."""
    return single_drawings(
        "drawn", sprite_bank, styles=("noto",), shown=source.names, names=source.names
    )


def test_every_drawing_of_the_shown_names_is_there_once(
    sprite_bank: SpriteBank, source: SceneSource
) -> None:
    shown = frozenset(sorted(source.names)[:3])
    both = single_drawings(
        "two styles",
        sprite_bank,
        styles=("noto", "fluent-3d"),
        shown=shown | {"no such drawing"},
        names=source.names,
    )
    assert sorted(both.labels) == sorted([*shown, *shown])
    assert list(both.names) == sorted(source.names)
    assert len({image.tobytes() for image in both.images}) == len(both.labels)


def test_a_drawing_stands_whole_on_a_plain_ground(sprite_bank: SpriteBank) -> None:
    (image,) = plain_images(sprite_bank, np.asarray([1]))  # a square
    assert image.shape == (IMAGE_SIZE, IMAGE_SIZE, 3)
    assert image.dtype == np.uint8
    margin = image[:10]
    assert (margin == image[0, 0]).all()
    middle = IMAGE_SIZE // 2
    colour = sprite_bank.rgba_MSS4[1, 48, 48, :3]
    assert image[middle, middle].tolist() == pytest.approx(colour.tolist(), abs=1)
    drawn = (image != image[0, 0]).any(2)
    rows, columns = np.flatnonzero(drawn.any(1)), np.flatnonzero(drawn.any(0))
    for found in (rows, columns):
        assert 0.65 * IMAGE_SIZE < found[-1] - found[0] < 0.76 * IMAGE_SIZE
        assert found[0] == pytest.approx(IMAGE_SIZE - 1 - found[-1], abs=2)


def test_scenes_of_one_object_are_images_too(source: SceneSource) -> None:
    alone = SceneConfig(size=42, count_weights=(1.0,), min_size=0.6)
    scenes = [compose_scene(replace(source, split="test"), i, alone) for i in range(4)]
    benchmark = single_object_scenes("alone", scenes, source.names)
    assert list(benchmark.labels) == [scene.captions.names[0] for scene in scenes]
    assert benchmark.images[2] is scenes[2].pixels_SS3


def test_an_embedding_at_its_name_is_right(benchmark: ClassificationBenchmark) -> None:
    classes_KD = np.eye(len(benchmark.names), dtype=np.float32)
    row = {name: number for number, name in enumerate(benchmark.names)}
    own_MD = classes_KD[[row[label] for label in benchmark.labels]]
    assert benchmark.rank(3 * own_MD, classes_KD).found(1) == 100.0
    next_MD = classes_KD[[(row[label] + 1) % len(row) for label in benchmark.labels]]
    both = benchmark.rank(2 * next_MD + own_MD, classes_KD)
    assert (both.found(1), both.found(2)) == (0.0, 100.0)


@pytest.mark.parametrize("templates", ["none", "tcl"])
def test_a_model_is_ranked_by_its_first_token(
    templates: str,
    benchmark: ClassificationBenchmark,
    encoder_model: Tipsv2Model,
    tokenizer: Tipsv2Tokenizer,
) -> None:
    found = benchmark.classify(encoder_model, tokenizer, templates)
    features = encode_images(encoder_model, benchmark.images)
    classes_KD = encode_names(encoder_model, tokenizer, benchmark.names, templates)
    first, second = (benchmark.rank(features[key], classes_KD) for key in ("cls1", "cls2"))
    assert found.rank_Q.tolist() == first.rank_Q.tolist() != second.rank_Q.tolist()
    assert found.chance(1) == pytest.approx(100 / len(benchmark.names))


def test_images_need_labels_among_the_names(benchmark: ClassificationBenchmark) -> None:
    with pytest.raises(ValueError, match="shown but are no candidates"):
        replace(benchmark, names=benchmark.names[1:])
    with pytest.raises(ValueError, match="every image needs one label"):
        replace(benchmark, labels=benchmark.labels[1:])
    with pytest.raises(ValueError, match="there must be some"):
        replace(benchmark, labels=[], images=[])
