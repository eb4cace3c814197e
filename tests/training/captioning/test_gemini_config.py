"""What Gemini is asked, and what asking is expected to cost."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from training.captioning.cost import Price
from training.captioning.gemini_config import GeminiConfig, GeminiLimits, estimate_cost
from training.captioning.journal import Usage
from training.data.shards.sample import Sample

SAMPLE = Sample(key="a", image=b"", suffix=".png")
PRICE = Price(input_usd=1, output_usd=10, as_of="2026-01-01")


def test_only_the_texts_that_a_sample_has_are_given() -> None:
    config = GeminiConfig(prompt="Describe in {words} words.", max_words=9, alt_source="web")
    both = replace(SAMPLE, captions={"web": "an alt\ntext", "paligemma": "a caption", "alt": "no"})
    assert config.text_for(SAMPLE) == "Describe in 9 words."
    assert config.text_for(both) == (
        "Describe in 9 words.\nAlt text: an alt text\nShort caption: a caption"
    )


def test_a_whole_page_of_alt_text_is_cut() -> None:
    sample = replace(SAMPLE, captions={"alt": "x" * 10_000})
    text = GeminiConfig(prompt="", max_text_characters=50).text_for(sample)
    assert text == "\nAlt text: " + "x" * 50


def test_tokens_are_the_images_and_a_quarter_of_the_text() -> None:
    config = GeminiConfig(prompt="12345678", image_resolution="low")
    assert config.input_tokens(SAMPLE) == 280 + 2
    assert replace(config, image_tokens=258).input_tokens(SAMPLE) == 258 + 2


def test_an_estimate_adds_up(some_samples: Callable[..., Any]) -> None:
    config = GeminiConfig(
        prompt="12345678", image_tokens=100, expected_output_tokens=10, max_output_tokens=20
    )
    # "\nAlt text: alt of k000" is 22 characters more: 30 of them are 8 tokens.
    estimate = estimate_cost(some_samples(0, 10), config, PRICE)
    assert estimate.samples == 10
    assert estimate.expected == Usage(input_tokens=1080, output_tokens=100)
    assert estimate.at_most == Usage(input_tokens=1080, output_tokens=200)
    assert estimate.expected_usd == pytest.approx(2080 / 1e6)


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({"image_resolution": "huge"}, "image_resolution"),
        ({"max_words": 0}, "max_words"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_text_characters": 0}, "max_text_characters"),
        ({"expected_output_tokens": 999}, "expected_output_tokens"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], advice: str) -> None:
    with pytest.raises(ValueError, match=advice):
        GeminiConfig(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"max_in_flight": 0},
        {"timeout_s": 0.0},
        {"max_attempts": 0},
        {"first_delay_s": 0.0},
        {"first_delay_s": 61.0},
    ],
)
def test_wrong_limits_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        GeminiLimits(**settings)
