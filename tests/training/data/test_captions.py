"""Captions of scenes, and the choice of captions for each step."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.text import TEMPLATES
from training.data.captions import Captions, CaptionSampling, PlacedObject, plural, write_captions
from training.data.concepts import NO_ARTICLE, all_concepts

BACKGROUND = "on a plain red background"
NUMBER_WORDS = {2: "two", 3: "three", 4: "four"}
NAMES = [concept.name for concept in all_concepts()]
# "a unicorn" begins with a consonant's sound, "an hourglass" with a vowel's.
BARE_ARTICLE = re.compile(r"\ba (?=[aeio]|u(?!nicorn)|hour)|\ban (?=[^aeiouh]|unicorn)", re.I)
# "a fire truck" is right, "a fire at the top" is not.
ARTICLE_OF_PLURAL = re.compile(
    rf"\ban? ((large|small) )?({'|'.join(sorted(NO_ARTICLE))})(?=,|$| and| (in|on|at) the)"
)
objects = st.builds(
    PlacedObject,
    name=st.sampled_from(NAMES),
    size=st.floats(0.1, 1.0),
    x=st.floats(0, 1),
    y=st.floats(0, 1),
    visible=st.floats(0.3, 1.0),
)


def thing(
    name: str, *, x: float = 0.5, y: float = 0.5, size: float = 0.4, visible: float = 1.0
) -> PlacedObject:
    return PlacedObject(name=name, size=size, x=x, y=y, visible=visible)


def captions_of(
    *things: PlacedObject, seed: int = 0, keywords: Mapping[str, Sequence[str]] | None = None
) -> Captions:
    return write_captions(np.random.default_rng(seed), things, BACKGROUND, keywords or {})


@pytest.mark.parametrize(
    ("name", "several"),
    [
        ("mouse", "mice"),
        ("kitchen knife", "kitchen knives"),
        ("snowman", "snowmen"),
        ("scissors", "scissors"),
        ("nut and bolt", "nuts and bolts"),
    ],
)
def test_plurals_follow_english(name: str, several: str) -> None:
    assert plural(name) == several


def test_every_name_makes_a_noun_phrase() -> None:
    for name in NAMES:
        one = captions_of(thing(name)).scene
        two = captions_of(thing(name, x=0.1), thing(name, x=0.9)).scene
        if name in NO_ARTICLE:
            assert one == f"{name} in the center, {BACKGROUND}"
            assert two == f"{name} on the left and on the right, {BACKGROUND}"
        else:
            assert one in {
                f"{article} {name} in the center, {BACKGROUND}" for article in ("a", "an")
            }
            assert two == f"two {plural(name)} on the left and on the right, {BACKGROUND}"
        assert not BARE_ARTICLE.search(one), one


@pytest.mark.parametrize(
    ("x", "y", "place"),
    [
        (0.5, 0.5, "in the center"),
        (0.1, 0.5, "on the left"),
        (0.5, 0.9, "at the bottom"),
        (0.9, 0.1, "at the top right"),
        (1.0, 1.0, "at the bottom right"),
    ],
)
def test_a_caption_names_the_place(x: float, y: float, place: str) -> None:
    assert captions_of(thing("dog", x=x, y=y)).scene == f"a dog {place}, {BACKGROUND}"


def test_sizes_and_hidden_parts() -> None:
    scene = captions_of(
        thing("egg", size=0.6, x=0.1),
        thing("owl", size=0.3, x=0.9),
        thing("scissors", size=0.6, visible=0.5),
    ).scene
    assert scene == (
        "a large egg on the left, a small owl on the right and "
        f"large scissors in the center partly hidden, {BACKGROUND}"
    )


def test_keywords_are_three_of_each_name() -> None:
    words = {"dog": ("pet", "animal", "puppy", "hound", "canine")}
    captions = captions_of(thing("dog"), thing("vase"), keywords=words)
    chosen = captions.keywords.split(", ")
    assert len(chosen) == len(set(chosen)) == 4
    assert set(chosen[:3]) < set(words["dog"])
    assert chosen[3] == "vase"


def test_short_captions_take_every_form_and_sometimes_leave_an_object_out() -> None:
    shorts = [captions_of(thing("dog"), thing("apple"), seed=seed).short for seed in range(400)]
    whole = {"a dog and an apple", "an apple and a dog"}
    tags = {"dog, apple", "apple, dog"}
    prompts = {t.format(name) for t in TEMPLATES["tcl"] for name in ("dog", "apple")}
    one = {"dog", "apple", "a dog", "an apple"} | prompts
    assert set(shorts) <= whole | tags | one
    assert whole | tags <= set(shorts)
    incomplete = sum(short in one for short in shorts) / len(shorts)
    assert 0.1 < incomplete < 0.2


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("mouse", "mouse", "egg"), {"two mice and an egg", "an egg and two mice"}),
        (("scissors",), {"art of the scissors."}),
    ],
)
def test_short_captions_count_equal_names_and_need_no_article_for_a_plural(
    names: tuple[str, ...], said: set[str]
) -> None:
    shorts = {captions_of(*map(thing, names), seed=seed).short for seed in range(200)}
    assert said <= shorts
    assert not [short for short in shorts if "a scissors" in short or "many scissors" in short]


@given(things=st.lists(objects, min_size=1, max_size=4), seed=st.integers(0, 2**31))
def test_captions_of_any_scene_are_english(things: list[PlacedObject], seed: int) -> None:
    captions = captions_of(*things, seed=seed)
    names = list(dict.fromkeys(thing.name for thing in things))
    assert list(captions.names) == names
    assert captions.scene.endswith(f", {BACKGROUND}")
    assert len(re.findall(r"\b(?:in|on|at) the\b", captions.scene)) == len(things)
    prompts = {t.format(name) for t in TEMPLATES["tcl"] for name in names}
    for text in (captions.scene, *({captions.short} - prompts)):
        assert "  " not in text
        assert text == text.strip()
        assert not BARE_ARTICLE.search(text), text
        assert not ARTICLE_OF_PLURAL.search(text), text
    for name in names:
        count = sum(thing.name == name for thing in things)
        if count > 1 and name not in NO_ARTICLE:
            pattern = rf"\b{NUMBER_WORDS[count]} ((large|small) )?{plural(name)}\b"
            assert re.search(pattern, captions.scene)
        else:
            assert re.search(rf"\b{name}\b", captions.scene)
    assert write_captions(np.random.default_rng(seed), things, BACKGROUND, {}) == captions


CAPTIONS = {"alt": "IMG 12", "paligemma": "a dog on grass", "gemini": "a brown dog, running"}


def test_alt_text_goes_to_cls1_and_the_synthetic_captions_share_cls2_evenly() -> None:
    rng, sampling = np.random.default_rng(0), CaptionSampling()
    counts = Counter(sampling.choose(CAPTIONS, rng) for _ in range(400))
    short, long = (CAPTIONS["alt"], CAPTIONS["paligemma"]), (CAPTIONS["alt"], CAPTIONS["gemini"])
    assert set(counts) == {short, long}
    assert 160 < counts[long] < 240


@pytest.mark.parametrize(
    ("captions", "chosen"),
    [
        ({"paligemma": "a dog on grass"}, ("a dog on grass", "a dog on grass")),
        ({"alt": "", "gemini": "  "}, None),
        ({}, None),
    ],
)
def test_a_token_falls_back_to_other_captions(
    captions: dict[str, str], chosen: tuple[str, str] | None
) -> None:
    assert CaptionSampling().choose(captions, np.random.default_rng(0)) == chosen


@pytest.mark.parametrize("empty", ["cls1", "cls2"])
def test_each_token_needs_a_source(empty: str) -> None:
    with pytest.raises(ValueError, match="at least one source"):
        CaptionSampling(**{empty: ()})
