"""The cost of captions from a paid service: tokens and prices, before and after a run."""

from dataclasses import dataclass

from training.captioning.journal import Usage

CHARACTERS_PER_TOKEN = 4  # of English, by Google's own rule of thumb


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """A service's price list for one model.

    Attributes:
        input_usd: US dollars for a million input tokens.
        output_usd: US dollars for a million output tokens, which include hidden reasoning.
        as_of: When the list was read, as YYYY-MM-DD; prices change.
    """

    input_usd: float
    output_usd: float
    as_of: str

    def __post_init__(self) -> None:
        """Check the signs."""
        if self.input_usd < 0 or self.output_usd < 0:
            raise ValueError("a price for a million tokens cannot be negative")

    def of(self, usage: Usage) -> float:
        """Return the US dollars that some tokens cost."""
        million = 1_000_000
        return (
            usage.input_tokens * self.input_usd + usage.output_tokens * self.output_usd
        ) / million


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a job will take, as far as it can be said before it runs.

    Attributes:
        samples: Images still to be captioned.
        expected: Tokens if every answer has the expected length.
        at_most: Tokens if every answer is as long as it may be; failed tries are not in it.
        price: The price list.
    """

    samples: int
    expected: Usage
    at_most: Usage
    price: Price

    @property
    def expected_usd(self) -> float:
        """The expected cost in US dollars."""
        return self.price.of(self.expected)

    @property
    def at_most_usd(self) -> float:
        """The cost in US dollars if every answer is as long as it may be."""
        return self.price.of(self.at_most)

    def __str__(self) -> str:
        """The estimate as a few lines for a person."""
        price = self.price
        return "\n".join(
            [
                f"{self.samples:,} images to caption",
                f"{self.expected.input_tokens:,} tokens in, "
                f"{self.expected.output_tokens:,} out, at most {self.at_most.output_tokens:,}",
                f"${price.input_usd:g} and ${price.output_usd:g} for a million tokens, "
                f"as read on {price.as_of}",
                f"about ${self.expected_usd:,.2f}, at most ${self.at_most_usd:,.2f} "
                "and what retries add",
            ]
        )


def text_tokens(text: str) -> int:
    """Estimate a text's tokens: a token for four characters, rounded up."""
    return -(-len(text) // CHARACTERS_PER_TOKEN)
