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
    assert captions_of(*things, seed=seed) == captions


def test_alt_text_goes_to_cls1_and_the_synthetic_captions_share_cls2_evenly() -> None:
    captions = {"alt": "IMG 12", "paligemma": "a dog on grass", "gemini": "a brown dog, running"}
    rng, sampling = np.random.default_rng(0), CaptionSampling()
    counts = Counter(sampling.choose(captions, rng) for _ in range(400))
    short, long = ((captions["alt"], captions[name]) for name in ("paligemma", "gemini"))
    assert set(counts) == {short, long}
    assert 160 < counts[long] < 240
    # A token falls back to other captions.
    assert sampling.choose({"paligemma": "a dog"}, rng) == ("a dog", "a dog")
    assert sampling.choose({"alt": "", "gemini": "  "}, rng) is None
    # One of several captions of a source is drawn.
    several = {"alt": "one", "alt#2": "two", "gemini": "long"}
    assert {sampling.choose(several, rng) for _ in range(50)} == {("one", "long"), ("two", "long")}
    for empty in ("cls1", "cls2"):
        with pytest.raises(ValueError, match="at least 1 item"):
            CaptionSampling(**{empty: ()})
