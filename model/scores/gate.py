"""Decides by rules whether a student may replace the served model.

```toml
[[score]]
task = "zero-shot segmentation"
split = "seen styles, 50 everyday names"
metric = "mIoU"
minimum = 30.0   # least value of the student
max_loss = 2.0   # points by which it may be worse than the served model
```

The loss is judged at the lower end of the 95 % interval of the difference: a student passes only if
the scores exclude a greater loss.
"""

import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from model.manifest import ScoreEntry

STUDENT, SERVED = "student", "served"
GAIN = f"{STUDENT} - {SERVED}"


class Refused(Exception):
    """The student is not good enough; the message names the failed rules."""


class Rule(BaseModel):
    """Requirements on one score of `ScoreEntry`.

    Attributes:
        minimum: Least value of the student; None for no minimum.
        max_loss: Largest loss against the served model, in points; None for no limit.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    task: str
    split: str
    metric: str
    minimum: float | None = None
    max_loss: float | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _asks_something(self) -> "Rule":
        if self.minimum is None and self.max_loss is None:
            raise ValueError("a rule needs a minimum, a max_loss or both")
        return self

    @property
    def title(self) -> str:
        """The name of the score."""
        return f"{self.task} | {self.split} | {self.metric}"


class _Rules(BaseModel):
    """A file of rules."""

    model_config = ConfigDict(extra="forbid")

    score: list[Rule] = Field(min_length=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A requirement with its score as text, and whether the score fulfils it."""

    text: str
    passed: bool


def read_rules(path: Path) -> list[Rule]:
    """Read a file of rules; ValueError if it is not TOML or contains an invalid rule."""
    try:
        return _Rules.model_validate(tomllib.loads(path.read_text(encoding="utf-8"))).score
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise ValueError(f"{path} holds no valid rules: {error}") from error


def judge(rules: Sequence[Rule], entries: Sequence[ScoreEntry]) -> list[Verdict]:
    """Check scores against rules, in their order; ValueError if one was not measured."""
    return [verdict for rule in rules for verdict in _verdicts(rule, entries)]


def _verdicts(rule: Rule, entries: Sequence[ScoreEntry]) -> Iterator[Verdict]:
    if rule.minimum is not None:
        own = _find(rule, STUDENT, entries)
        passed = own.value >= rule.minimum
        asked = f"must reach {rule.minimum:.2f}"
        yield Verdict(text=f"{rule.title}: {own.value:.2f}, {asked}", passed=passed)
    if rule.max_loss is not None:
        gain = _find(rule, GAIN, entries)
        if gain.low is None or gain.high is None:
            raise ValueError(f"{rule.title} of {GAIN!r} has no interval, which max_loss needs")
        passed = gain.low >= -rule.max_loss
        number = f"{gain.value:+.2f} [{gain.low:+.2f}, {gain.high:+.2f}] against the served model"
        asked = f"may not lose more than {rule.max_loss:.2f}"
        yield Verdict(text=f"{rule.title}: {number}, {asked}", passed=passed)


def _find(rule: Rule, row: str, entries: Sequence[ScoreEntry]) -> ScoreEntry:
    key = (rule.task, rule.split, rule.metric, row)
    for entry in entries:
        if (entry.task, entry.split, entry.metric, entry.row) == key:
            return entry
    advice = (
        "evaluate with --served PACKAGE"
        if row == GAIN and not any(entry.row == GAIN for entry in entries)
        else "correct the rule, or evaluate with the data that it names"
    )
    raise ValueError(f"no score {rule.title!r} of {row!r} was measured; {advice}")
