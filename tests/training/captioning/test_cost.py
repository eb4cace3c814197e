"""Costs are tokens times the price list."""

import pytest

from training.captioning.cost import CostEstimate, Price, text_tokens
from training.captioning.journal import Usage

PRICE = Price(input_usd=0.3, output_usd=2.5, as_of="2026-10-07")


def test_a_million_tokens_cost_what_the_list_says() -> None:
    assert PRICE.of(Usage(input_tokens=1_000_000)) == pytest.approx(0.3)
    assert PRICE.of(Usage(output_tokens=2_000_000)) == pytest.approx(5.0)
    assert PRICE.of(Usage()) == 0


def test_a_negative_price_is_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        Price(input_usd=-1, output_usd=0, as_of="")


def test_the_estimate_tells_everything_a_person_needs() -> None:
    estimate = CostEstimate(
        samples=1000,
        expected=Usage(input_tokens=2_000_000, output_tokens=100_000),
        at_most=Usage(input_tokens=2_000_000, output_tokens=256_000),
        price=PRICE,
    )
    assert estimate.expected_usd == pytest.approx(0.85)
    assert estimate.at_most_usd == pytest.approx(1.24)
    for part in ("1,000 images", "2,000,000", "100,000", "256,000", "2026-10-07", "0.85", "1.24"):
        assert part in str(estimate)


@pytest.mark.parametrize(("text", "tokens"), [("", 0), ("a", 1), ("four", 1), ("five5", 2)])
def test_four_characters_are_a_token(text: str, tokens: int) -> None:
    assert text_tokens(text) == tokens
