"""The side file of a finished shard: the captions it gained, the samples that failed, the cost.

It holds no caption; those are in the shard.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from training.captioning.outcome import Outcome, Usage, total_usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What became of a shard's samples, or of several shards'.

    Attributes:
        captioned: Samples that gained a caption.
        already: Samples that had one of this source before, which were left alone.
        failures: The others: key, kind and message of each.
        usage: Tokens paid for.
    """

    captioned: int = 0
    already: int = 0
    failures: tuple[Mapping[str, str], ...] = ()
    usage: Usage = field(default_factory=Usage)

    def __add__(self, other: "Report") -> "Report":
        return Report(
            captioned=self.captioned + other.captioned,
            already=self.already + other.already,
            failures=self.failures + other.failures,
            usage=self.usage + other.usage,
        )


def make_report(outcomes: Iterable[Outcome], *, already: int = 0) -> Report:
    """Sum up a shard's outcomes."""
    outcomes = list(outcomes)
    return Report(
        captioned=sum(outcome.caption is not None for outcome in outcomes),
        already=already,
        failures=tuple(
            {"key": outcome.key, "kind": failure.kind, "message": failure.message}
            for outcome in outcomes
            if (failure := outcome.failure) is not None
        ),
        usage=total_usage(outcomes),
    )


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


def write_report(path: Path, report: Report) -> None:
    """Write a report whole or not at all."""
    write_json(path, asdict(report))


def read_report(path: Path) -> Report:
    """Read what `write_report` wrote."""
    document = json.loads(path.read_text(encoding="utf-8"))
    return Report(
        captioned=document["captioned"],
        already=document["already"],
        failures=tuple(document["failures"]),
        usage=Usage(**document["usage"]),
    )
