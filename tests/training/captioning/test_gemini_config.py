"""Gemini's prompt, limits, prices, the estimate and the key."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.training.captioning.fakes import make_samples
from training.captioning.cost import Price
from training.captioning.gemini_config import (
    GeminiConfig,
    GeminiLimits,
    estimate_cost,
    read_api_key,
)
from training.captioning.journal import Usage
from training.data.shards.sample import Sample

SAMPLE = Sample(key="a", image=b"", suffix=".png")
PRICE = Price(input_usd=1, output_usd=10, as_of="2026-01-01")


def test_the_prompt_has_the_samples_texts_cut_to_a_limit() -> None:
    config = GeminiConfig(prompt="Describe in {words} words.", max_words=9, alt_source="web")
    both = replace(SAMPLE, captions={"web": "an alt\ntext", "paligemma": "a caption", "alt": "no"})
    assert config.text_for(SAMPLE) == "Describe in 9 words."
    assert config.text_for(both) == (
        "Describe in 9 words.\nAlt text: an alt text\nShort caption: a caption"
    )
    sample = replace(SAMPLE, captions={"alt": "x" * 10_000})
    text = GeminiConfig(prompt="", max_text_characters=50).text_for(sample)
    assert text == "\nAlt text: " + "x" * 50
    config = GeminiConfig(prompt="12345678", image_resolution="low")
    assert config.input_tokens(SAMPLE) == 280 + 2
    assert replace(config, image_tokens=258).input_tokens(SAMPLE) == 258 + 2


def test_an_estimate_adds_up() -> None:
    config = GeminiConfig(
        prompt="12345678", image_tokens=100, expected_output_tokens=10, max_output_tokens=20
    )
    # "\nAlt text: alt of k000" is 22 characters more: 30 of them are 8 tokens.
    estimate = estimate_cost(make_samples(0, 10), config, PRICE)
    assert estimate.samples == 10
    assert estimate.expected == Usage(input_tokens=1080, output_tokens=100)
    assert estimate.at_most == Usage(input_tokens=1080, output_tokens=200)
    assert estimate.expected_usd == pytest.approx(2080 / 1e6)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (GeminiConfig, {"image_resolution": "huge"}),
        (GeminiConfig, {"max_words": 0}),
        (GeminiConfig, {"expected_output_tokens": 999}),
        (GeminiLimits, {"timeout_s": 0.0}),
        (GeminiLimits, {"max_attempts": 0}),
        (GeminiLimits, {"first_delay_s": 61.0}),
        (Price, {"input_usd": -1, "output_usd": 0, "as_of": ""}),
    ],
)
def test_wrong_settings_are_refused(kind: Callable[..., Any], settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="|".join(settings) + "|must be|negative"):
        kind(**settings)


def test_the_key_comes_from_a_named_file_or_the_environment(tmp_path: Path) -> None:
    both = {"GOOGLE_API_KEY": "g", "GEMINI_API_KEY": " m "}
    (tmp_path / "key").write_text("f\n")
    (tmp_path / "empty").write_text("\n")
    assert read_api_key(tmp_path / "key", both) == "f"
    assert read_api_key(None, both) == "m"
    assert read_api_key(None, {"GOOGLE_API_KEY": "g"}) == "g"
    with pytest.raises(ValueError, match="GEMINI_API_KEY"):
        read_api_key(None, {"GEMINI_API_KEY": ""})
    with pytest.raises(ValueError, match="is empty"):
        read_api_key(tmp_path / "empty", {})
