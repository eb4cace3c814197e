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
from training.data.augment import STRONG_AUGMENT
from training.data.concepts import all_concepts
from training.data.scenes import Scene, SceneConfig, SceneSource, Split, compose_scene

CONFIG = SceneConfig(size=42, count_weights=(0.3, 0.4, 0.3))
COMMON = {concept.name for concept in all_concepts() if concept.is_common}


def names_in(mask_SS: NDArray[np.int32]) -> set[str]:
    return {all_concepts()[value - 1].name for value in np.unique(mask_SS) if value}


def content(scene: Scene) -> tuple[object, ...]:
    return scene.pixels_SS3.tobytes(), scene.mask_SS.tobytes(), scene.captions, scene.drawings


@pytest.mark.parametrize("config", [CONFIG, replace(CONFIG, augment=STRONG_AUGMENT)])
def test_a_scene_is_a_function_of_its_number(source: SceneSource, config: SceneConfig) -> None:
    first, other, again = (content(compose_scene(source, index, config)) for index in (5, 6, 5))
    assert first == again != other


@pytest.mark.parametrize("changed", [{"split": "val"}, {"split": "test"}, {"seed": 1}])
def test_splits_and_seeds_have_their_own_scenes(
    source: SceneSource, changed: dict[str, Any]
) -> None:
    sources = (source, replace(source, **changed))
    for index in range(4):
        first, second = (compose_scene(one, index, CONFIG).pixels_SS3 for one in sources)
        assert not np.array_equal(first, second)


@given(index=st.integers(0, 2**40), split=st.sampled_from(["train", "val", "test"]))
@settings(max_examples=40, deadline=None)
def test_every_scene_shows_what_its_captions_name(
    source: SceneSource, index: int, split: Split
) -> None:
    scene = compose_scene(replace(source, split=split), index, CONFIG)
    assert (scene.pixels_SS3.shape, scene.pixels_SS3.dtype.name) == ((42, 42, 3), "uint8")
    assert (scene.mask_SS.shape, scene.mask_SS.dtype.name) == ((42, 42), "int32")
    assert set(scene.captions.names) == names_in(scene.mask_SS) <= source.names
    for value in np.unique(scene.mask_SS):
        assert (scene.mask_SS == value).sum() >= 0.004 * 42 * 42


@pytest.mark.parametrize("augment", [CONFIG.augment, STRONG_AUGMENT])
def test_the_mask_is_the_alpha_of_the_top_object(
    source: SceneSource, monkeypatch: pytest.MonkeyPatch, augment: Any
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
    config = replace(CONFIG, count_weights=(0.0, 0.0, 1.0), min_size=0.5, augment=augment)
    for index in range(8):
        scene = compose_scene(source, index, config)
        expected = np.zeros_like(scene.mask_SS)
        for (concept, _), (_, alpha) in zip(chosen, placed, strict=True):
            expected = np.where(alpha > 0.5, concept + 1, expected)
        assert np.array_equal(scene.mask_SS, expected)
        colour, alpha = placed[-1]
        shown = scene.pixels_SS3[alpha == 1].astype(float)
        assert np.abs(shown - colour[alpha == 1]).max() <= 0.5 + 1e-3


@pytest.mark.parametrize("count", [1, 2, 3])
def test_all_chosen_objects_are_visible(source: SceneSource, count: int) -> None:
    weights = tuple(float(number == count) for number in range(1, 4))
    config = replace(CONFIG, count_weights=weights, twin_share=0.0)
    for index in range(15):
        scene = compose_scene(source, index, config)
        assert len(scene.captions.names) == len(scene.drawings) == count


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_share_of_everyday_words_is_kept(source: SceneSource, share: float) -> None:
    config = replace(CONFIG, common_share=share)
    for index in range(20):
        names = set(compose_scene(source, index, config).captions.names)
        assert names <= COMMON if share else not names & COMMON


def test_twins_have_one_name_and_a_number(source: SceneSource) -> None:
    config = replace(CONFIG, count_weights=(0.0, 1.0), twin_share=1.0)
    scene = compose_scene(source, 0, config)
    assert (len(scene.drawings), len(scene.captions.names)) == (2, 1)


def test_styles_are_weighted_alike_however_many_drawings_they_have(source: SceneSource) -> None:
    # Ten drawings of the first style, one of the second, all of one concept.
    bank = replace(
        source.bank,
        rgba_MSS4=source.bank.rgba_MSS4[:11],
        concept_M=np.full(11, source.bank.concept_M[0]),
        style_M=np.asarray([source.bank.styles.index("noto")] * 10 + [1]),
    )
    assert bank.styles[1] == "twemoji"
    lopsided, rng = replace(source, bank=bank), np.random.default_rng(0)
    drawn = [lopsided.redraw(rng, int(bank.concept_M[0])) for _ in range(400)]
    assert 150 < drawn.count(10) < 250
    assert set(drawn) == set(range(11))


def test_only_chosen_styles_and_names_appear(source: SceneSource) -> None:
    names = frozenset(sorted(source.names)[:4])
    narrow = replace(source, styles=("twemoji",), names=names)
    for index in range(20):
        scene = compose_scene(narrow, index, CONFIG)
        assert set(scene.captions.names) <= names
        styles = {narrow.bank.styles[s] for s in narrow.bank.style_M[list(scene.drawings)]}
        assert styles == {"twemoji"}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"names": frozenset({"moai"})}, "No drawing of the chosen names"),
        ({"styles": ("cubism",)}, "No style"),
    ],
)
def test_a_source_without_drawings_is_refused(
    source: SceneSource, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        replace(source, **changed)


def test_scenes_that_cannot_be_made_are_refused(
    source: SceneSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scenes_module, "_MAX_TRIES", 5)
    one_name = replace(source, names=frozenset(sorted(source.names)[:1]))
    pairs = replace(CONFIG, count_weights=(0.0, 1.0), twin_share=0.0)
    with pytest.raises(ValueError, match="too few names for 2"):
        compose_scene(one_name, 0, pairs)
    with pytest.raises(ValueError, match="allow larger objects"):
        compose_scene(source, 0, replace(CONFIG, size=140, min_size=0.01, max_size=0.01))


@pytest.mark.parametrize(
    "changed",
    [{"min_size": 0.7}, {"max_size": 1.2}, {"count_weights": ()}, {"count_weights": (1.0, -0.1)}],
)
def test_impossible_settings_are_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"min_size <= max_size|at least one weight"):
        replace(CONFIG, **changed)
