"""Whether a student may take the place of what is served: rules, and its scores held against them.

```toml
[[score]]
task = "zero-shot segmentation"
split = "seen styles, 50 everyday names"
metric = "mIoU"
minimum = 30.0   # what the student must reach
max_loss = 2.0   # points that it may be worse than the served model
```

The loss is judged at the lower end of the difference's 95 % interval: a student passes where scores
rule a greater loss out, not where they cannot show one.
"""

import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from model.manifest import ScoreEntry
from training.evaluate.report import GAIN, STUDENT


class Refused(Exception):
    """The student is not good enough; the message says by which scores."""


class Rule(BaseModel):
    """What one score has to keep; None where it is not held to that.

    Attributes:
        task: As in `ScoreEntry`, as the next two.
        split: See above.
        metric: See above.
        minimum: Least value of the student's own.
        max_loss: Most points that it may lose against what is served.
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
        """Which score it is, in words."""
        return f"{self.task} | {self.split} | {self.metric}"


class _Rules(BaseModel):
    """A whole file."""

    model_config = ConfigDict(extra="forbid")

    score: list[Rule] = Field(min_length=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What one demand came to.

    Attributes:
        text: The score, what was asked of it, and whether it keeps that.
        passed: Whether it does.
    """

    text: str
    passed: bool


def read_rules(path: Path) -> list[Rule]:
    """Read the rules of a file.

    Raises:
        FileNotFoundError: It is not there.
        ValueError: It is no TOML, or says something that no rule can.
    """
    try:
        return _Rules.model_validate(tomllib.loads(path.read_text(encoding="utf-8"))).score
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise ValueError(f"{path} holds no rules that can be read: {error}") from error


def judge(rules: Sequence[Rule], entries: Sequence[ScoreEntry]) -> list[Verdict]:
    """Hold scores against rules; a demand each, in the rules' order.

    Raises:
        ValueError: A score that a rule names was not measured, so nothing can be said.
    """
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
            raise ValueError(f"{rule.title} of {GAIN!r} has no interval to judge by")
        passed = gain.low >= -rule.max_loss
        number = f"{gain.value:+.2f} [{gain.low:+.2f}, {gain.high:+.2f}] against what is served"
        asked = f"may not lose more than {rule.max_loss:.2f}"
        yield Verdict(text=f"{rule.title}: {number}, {asked}", passed=passed)


def _find(rule: Rule, row: str, entries: Sequence[ScoreEntry]) -> ScoreEntry:
    key = (rule.task, rule.split, rule.metric, row)
    for entry in entries:
        if (entry.task, entry.split, entry.metric, entry.row) == key:
            return entry
    advice = (
        "evaluate it beside what is served: --served PACKAGE"
        if row == GAIN and not any(entry.row == GAIN for entry in entries)
        else "mend the rule, or evaluate with the drawings that it is about"
    )
    raise ValueError(f"no score {rule.title!r} of {row!r} was measured; {advice}")
