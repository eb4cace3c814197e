"""What came of captioning one sample: a caption or the reason why there is none, and its cost."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any


class JobStopped(ValueError):
    """The whole job cannot go on; the message says what to change before starting it again.

    What was captioned until then is kept, and the same command goes on from there.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens that a service charged for; zero for a model that runs here."""

    input_tokens: int = 0
    output_tokens: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a sample has no caption.

    Attributes:
        kind: One word to count by: "image", "blocked", "empty", "refused", "unavailable".
        message: What was said, without any secret.
        is_transient: Another try may well succeed, so a job that is started again makes one.
    """

    kind: str
    message: str
    is_transient: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One sample's caption, or its failure; never both, never neither.

    Attributes:
        key: The sample's name in its shard.
        caption: The caption, None where it failed.
        failure: Why it failed, None where it did not.
        usage: Tokens paid for, also where nothing usable came of them.
    """

    key: str
    caption: str | None = None
    failure: Failure | None = None
    usage: Usage = Usage()

    def __post_init__(self) -> None:
        """Check that it is one of the two."""
        if (self.caption is None) == (self.failure is None):
            raise ValueError(f"{self.key}: an outcome is either a caption or a failure")

    def to_json(self) -> dict[str, Any]:
        """Return the outcome as JSON's types."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Outcome":
        """Read what `to_json` wrote."""
        failure = document["failure"]
        return cls(
            key=document["key"],
            caption=document["caption"],
            failure=None if failure is None else Failure(**failure),
            usage=Usage(**document["usage"]),
        )


def total_usage(outcomes: Iterable[Outcome]) -> Usage:
    """Sum what some outcomes cost."""
    return sum((outcome.usage for outcome in outcomes), Usage())
