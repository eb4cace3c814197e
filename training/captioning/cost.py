"""The cost of captions from a paid service: tokens and prices, before and after a run."""

from dataclasses import dataclass

from training.captioning.journal import Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """A service's price list for one model.

    Attributes:
        input_usd: US dollars per million input tokens.
        output_usd: US dollars per million output tokens, which include hidden reasoning.
        as_of: Date of the list, as YYYY-MM-DD.
    """

    input_usd: float
    output_usd: float
    as_of: str

    def __post_init__(self) -> None:
        """Check the signs."""
        if self.input_usd < 0 or self.output_usd < 0:
            raise ValueError("a price per million tokens cannot be negative")

    def of(self, usage: Usage) -> float:
        """US dollars for some tokens."""
        million = 1_000_000
        return (
            usage.input_tokens * self.input_usd + usage.output_tokens * self.output_usd
        ) / million


@dataclass(frozen=True, slots=True, kw_only=True)
class CostEstimate:
    """Estimated cost of a job before it runs.

    Attributes:
        samples: Images still to be captioned.
        expected: Tokens if every answer has the expected length.
        at_most: Tokens if every answer has the maximum length, without failed attempts.
        price: The price list.
    """

    samples: int
    expected: Usage
    at_most: Usage
    price: Price

    @property
    def expected_usd(self) -> float:
        """Expected cost in US dollars."""
        return self.price.of(self.expected)

    @property
    def at_most_usd(self) -> float:
        """Cost in US dollars if every answer has the maximum length."""
        return self.price.of(self.at_most)

    def __str__(self) -> str:
        """The estimate in a few lines."""
        price = self.price
        return "\n".join(
            [
                f"{self.samples:,} images to caption",
                f"{self.expected.input_tokens:,} tokens in, "
                f"{self.expected.output_tokens:,} out, at most {self.at_most.output_tokens:,}",
                f"${price.input_usd:g} and ${price.output_usd:g} per million tokens, "
                f"prices of {price.as_of}",
                f"about ${self.expected_usd:,.2f}, at most ${self.at_most_usd:,.2f} plus retries",
            ]
        )
