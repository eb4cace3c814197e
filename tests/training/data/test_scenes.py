"""Scenes: a pure function of (seed, split, index), with the mask of what lies on top."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from training.data import scenes as scenes_module
from training.data.augment import recolour, warp_sprite
from training.data.backgrounds import COLOURS, Photo, draw_background
from training.data.concepts import all_concepts
from training.data.scenes import Scene, SceneConfig, SceneSource, Split, compose_scene
from training.data.sprites import SpriteBank

CONFIG = SceneConfig(size=42, count_weights=(0.3, 0.4, 0.3))
COMMON = {concept.name for concept in all_concepts() if concept.is_common}
COLOUR = "|".join(COLOURS)
PHRASE = re.compile(
    rf"on a plain ({COLOUR}) background"
    rf"|on a background fading from ({COLOUR}) to ({COLOUR})"
    rf"|on a mottled ({COLOUR}) and ({COLOUR}) background"
    rf"|on (an orange|a (?!orange)({COLOUR})) and ({COLOUR}) (striped|checkered) background"
)


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


def test_counts_shares_twins_styles_and_names_are_kept(source: SceneSource) -> None:
    def shown(config: SceneConfig, **changes: Any) -> list[Scene]:
        return [compose_scene(replace(source, **changes), i, config) for i in range(15)]

    for count in (1, 2, 3):
        weights = tuple(float(number == count) for number in range(1, 4))
        for scene in shown(replace(CONFIG, count_weights=weights, twin_share=0.0)):
            assert len(scene.captions.names) == len(scene.drawings) == count
    for share, is_common in ((0.0, False), (1.0, True)):
        for scene in shown(replace(CONFIG, common_share=share)):
            assert {name in COMMON for name in scene.captions.names} == {is_common}
    for scene in shown(replace(CONFIG, count_weights=(0.0, 1.0), twin_share=1.0)):
        assert (len(scene.drawings), len(scene.captions.names)) == (2, 1)
    names, bank = frozenset(sorted(source.names)[:4]), source.bank
    for scene in shown(CONFIG, styles=("twemoji",), names=names):
        assert set(scene.captions.names) <= names
        assert {bank.styles[s] for s in bank.style_M[list(scene.drawings)]} == {"twemoji"}


def test_styles_are_weighted_alike_however_many_drawings_they_have(source: SceneSource) -> None:
    # Ten drawings of the first style, one of the second, all of one concept.
    bank = replace(
        source.bank,
        rgba_MSS4=source.bank.rgba_MSS4[:11],
        concept_M=np.full(11, source.bank.concept_M[0]),
        style_M=np.asarray([source.bank.styles.index(s) for s in ["noto"] * 10 + ["twemoji"]]),
    )
    lopsided, rng = replace(source, bank=bank), np.random.default_rng(0)
    drawn = [lopsided.redraw(rng, int(bank.concept_M[0])) for _ in range(400)]
    assert 150 < drawn.count(10) < 250
    assert set(drawn) == set(range(11))


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
        with pytest.raises(ValueError, match="at least one weight"):
            replace(CONFIG, count_weights=weights)


def test_backgrounds_come_with_a_phrase_that_names_them() -> None:
    photo = Photo(pixels_HW3=np.full((50, 80, 3), 77, np.uint8), phrase="a gray wall")
    kinds, photos = set(), 0
    for seed in range(200):
        pixels, phrase = draw_background(np.random.default_rng(seed), 28, ())
        assert (pixels.shape, pixels.dtype.name) == ((28, 28, 3), "float32")
        assert 0 <= pixels.min() <= pixels.max() <= 255
        assert PHRASE.fullmatch(phrase), phrase
        kinds |= {"plain", "fading", "mottled", "striped", "checkered"} & set(phrase.split())
        if phrase.startswith("on a plain"):
            colour = phrase.removeprefix("on a plain ").removesuffix(" background")
            assert np.ptp(pixels.reshape(-1, 3), axis=0).max() == 0
            assert np.abs(pixels[0, 0] - COLOURS[colour]).max() < 60
        _, phrase = draw_background(np.random.default_rng(seed), 28, (), is_textured=True)
        assert set(phrase.split()) & {"mottled", "striped", "checkered"}
        pixels, phrase = draw_background(np.random.default_rng(seed), 28, (photo,))
        if phrase == "over a photo of a gray wall":
            assert (pixels == 77).all()
            photos += 1
    assert len(kinds) == 5
    assert 70 < photos < 130


def test_drawings_are_augmented_within_their_range(sprite_bank: SpriteBank) -> None:
    sprite = np.asarray(sprite_bank.rgba_MSS4[2])
    rgb, alpha = sprite[..., :3].astype("f4"), (sprite[..., 3] / 255).astype("f4")

    def coloured(seed: int, pixels: Any = rgb) -> NDArray[np.float32]:
        return recolour(np.random.default_rng(seed), pixels, alpha)

    def warped(seed: int, *, is_augmented: bool = True) -> NDArray[np.uint8]:
        return warp_sprite(np.random.default_rng(seed), sprite, is_augmented=is_augmented)

    assert np.array_equal(warped(0, is_augmented=False), sprite)
    changed = [coloured(seed) for seed in (*range(20), 0)]
    assert len({one.tobytes() for one in changed}) == 20
    assert all(0 <= one.min() <= one.max() <= 255 for one in changed)
    solid = sprite[..., 3] > 127
    moved = [((warped(seed)[..., 3] > 127) != solid).mean() for seed in range(30)]
    assert 0 < np.median(moved) < 0.2
    assert 3 <= moved.count(0.0) <= 18  # some stay exact
