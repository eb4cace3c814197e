"""Gemini's prompt, limits, prices and the estimate."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from training.captioning.cost import CostEstimate, Price, text_tokens
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


PRICECost = Price(input_usd=0.3, output_usd=2.5, as_of="2026-10-07")


def test_a_million_tokens_cost_what_the_list_says() -> None:
    assert PRICECost.of(Usage(input_tokens=1_000_000)) == pytest.approx(0.3)
    assert PRICECost.of(Usage(output_tokens=2_000_000)) == pytest.approx(5.0)
    assert PRICECost.of(Usage()) == 0


def test_a_negative_price_is_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        Price(input_usd=-1, output_usd=0, as_of="")


def test_the_estimate_tells_everything_a_person_needs() -> None:
    estimate = CostEstimate(
        samples=1000,
        expected=Usage(input_tokens=2_000_000, output_tokens=100_000),
        at_most=Usage(input_tokens=2_000_000, output_tokens=256_000),
        price=PRICECost,
    )
    assert estimate.expected_usd == pytest.approx(0.85)
    assert estimate.at_most_usd == pytest.approx(1.24)
    for part in ("1,000 images", "2,000,000", "100,000", "256,000", "2026-10-07", "0.85", "1.24"):
        assert part in str(estimate)


@pytest.mark.parametrize(("text", "tokens"), [("", 0), ("a", 1), ("four", 1), ("five5", 2)])
def test_four_characters_are_a_token(text: str, tokens: int) -> None:
    assert text_tokens(text) == tokens
