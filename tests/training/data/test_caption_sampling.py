"""Which caption supervises which CLS token."""

from collections import Counter

import numpy as np
import pytest

from training.data.captions import SCENE_CAPTIONS, CaptionSampling

CAPTIONS = {"alt": "IMG 12", "paligemma": "a dog on grass", "gemini": "a brown dog, running"}


def drawn(sampling: CaptionSampling, captions: dict[str, str], count: int) -> list[tuple[str, str]]:
    """Draw captions many times."""
    rng = np.random.default_rng(0)
    chosen = [sampling.choose(captions, rng) for _ in range(count)]
    return [pair for pair in chosen if pair is not None]


def test_alt_text_goes_to_cls1_and_the_synthetic_captions_share_cls2_evenly() -> None:
    pairs = drawn(CaptionSampling(), CAPTIONS, 400)
    assert {first for first, _ in pairs} == {CAPTIONS["alt"]}
    counts = Counter(second for _, second in pairs)
    assert set(counts) == {CAPTIONS["paligemma"], CAPTIONS["gemini"]}
    assert 160 < counts[CAPTIONS["gemini"]] < 240


def test_one_source_for_both_is_the_ablation() -> None:
    sampling = CaptionSampling(cls1=("alt",), cls2=("alt",))
    assert set(drawn(sampling, CAPTIONS, 20)) == {(CAPTIONS["alt"], CAPTIONS["alt"])}


def test_a_token_takes_what_there_is_when_its_sources_are_missing() -> None:
    only = {"paligemma": "a dog on grass"}
    assert set(drawn(CaptionSampling(), only, 20)) == {("a dog on grass", "a dog on grass")}


@pytest.mark.parametrize("captions", [{}, {"alt": "", "gemini": "  "}])
def test_a_image_without_a_caption_has_none(captions: dict[str, str]) -> None:
    assert drawn(CaptionSampling(), captions, 3) == []


def test_an_empty_caption_is_none() -> None:
    captions = CAPTIONS | {"gemini": " "}
    assert {second for _, second in drawn(CaptionSampling(), captions, 30)} == {"a dog on grass"}


@pytest.mark.parametrize("empty", ["cls1", "cls2"])
def test_each_token_needs_a_source(empty: str) -> None:
    with pytest.raises(ValueError, match="at least one source"):
        CaptionSampling(**{empty: ()})


def test_scenes_draw_the_long_captions_for_cls2() -> None:
    assert SCENE_CAPTIONS.cls1 == ("alt",)
    assert SCENE_CAPTIONS.cls2 == ("keywords", "scene")
