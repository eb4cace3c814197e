"""Scenes: a pure function of (seed, split, index), with the mask of what lies on top."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from training.data import scenes as scenes_module
from training.data.concepts import all_concepts
from training.data.scenes import Scene, SceneConfig, SceneSource, Split, compose_scene

CONFIG = SceneConfig(size=42, count_weights=(0.3, 0.4, 0.3))


def content(scene: Scene) -> tuple[object, ...]:
    return scene.pixels_SS3.tobytes(), scene.mask_SS.tobytes(), scene.captions, scene.drawings


@pytest.mark.parametrize("is_augmented", [False, True])
def test_a_scene_is_a_function_of_its_number_split_and_seed(
    source: SceneSource, is_augmented: bool
) -> None:
    config = replace(CONFIG, is_augmented=is_augmented)
    others = [replace(source, split="val"), replace(source, split="test"), replace(source, seed=1)]
    found = {content(compose_scene(one, 5, config)) for one in (source, source, *others)}
    assert len(found | {content(compose_scene(source, 6, config))}) == 5


@given(index=st.integers(0, 2**40), split=st.sampled_from(["train", "val", "test"]))
@settings(max_examples=40, deadline=None)
def test_every_scene_shows_what_its_captions_name(
    source: SceneSource, index: int, split: Split
) -> None:
    scene = compose_scene(replace(source, split=split), index, CONFIG)
    assert (scene.pixels_SS3.shape, scene.pixels_SS3.dtype.name) == ((42, 42, 3), "uint8")
    assert (scene.mask_SS.shape, scene.mask_SS.dtype.name) == ((42, 42), "int32")
    values, counts = np.unique(scene.mask_SS, return_counts=True)
    shown = {all_concepts()[value - 1].name for value in values if value}
    assert set(scene.captions.names) == shown <= source.names
    assert counts.min() >= 0.004 * 42 * 42


@pytest.mark.parametrize("is_augmented", [False, True])
def test_the_mask_is_the_alpha_of_the_top_object(
    source: SceneSource, monkeypatch: pytest.MonkeyPatch, is_augmented: bool
) -> None:
    chosen: list[tuple[int, int]] = []
    placed: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []
    place: Callable[..., Any] = scenes_module.place_sprite
    choose: Callable[..., Any] = scenes_module._choose_objects

    def note_choice(*arguments: object) -> list[tuple[int, int]]:
        placed.clear()  # only the last attempt counts
        chosen[:] = choose(*arguments)
        return chosen

    def note_sprite(*arguments: object) -> Any:
        colour, alpha, centre = place(*arguments)
        placed.append((colour, alpha))
        return colour, alpha, centre

    monkeypatch.setattr(scenes_module, "_choose_objects", note_choice)
    monkeypatch.setattr(scenes_module, "place_sprite", note_sprite)
    config = replace(CONFIG, count_weights=(0.0, 0.0, 1.0), min_size=0.5, is_augmented=is_augmented)
    for index in range(8):
        scene = compose_scene(source, index, config)
        expected = np.zeros_like(scene.mask_SS)
        for (concept, _), (_, alpha) in zip(chosen, placed, strict=True):
            expected = np.where(alpha > 0.5, concept + 1, expected)
        assert np.array_equal(scene.mask_SS, expected)
        colour, alpha = placed[-1]
        shown = scene.pixels_SS3[alpha == 1].astype(float)
        assert np.abs(shown - colour[alpha == 1]).max() <= 0.5 + 1e-3


def test_what_cannot_be_drawn_is_refused(
    source: SceneSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scenes_module, "_MAX_TRIES", 5)
    with pytest.raises(ValueError, match="No drawing of the chosen names"):
        replace(source, names=frozenset({"moai"}))
    with pytest.raises(ValueError, match="No style"):
        replace(source, styles=("cubism",))
    one_name = replace(source, names=frozenset(sorted(source.names)[:1]))
    with pytest.raises(ValueError, match="too few names for 2"):
        compose_scene(one_name, 0, replace(CONFIG, count_weights=(0.0, 1.0), twin_share=0.0))
    with pytest.raises(ValueError, match="allow larger objects"):
        compose_scene(source, 0, replace(CONFIG, size=140, min_size=0.01, max_size=0.01))
    for low, high in ((0.7, 0.6), (0.3, 1.2)):
        with pytest.raises(ValueError, match="min_size <= max_size"):
            replace(CONFIG, min_size=low, max_size=high)
    for weights in ((), (1.0, -0.1)):
        with pytest.raises(ValueError, match="count_weights"):
            replace(CONFIG, count_weights=weights)
