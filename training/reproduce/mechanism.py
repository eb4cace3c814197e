"""How the patch loss fell on patches that the student saw and on those it did not.

The paper's reason for iBOT++: under iBOT nobody asks anything of visible patches, and their loss
stays where it was.

Source: TIPSv2, arXiv:2604.12012, the figure of the patch loss on visible and on masked tokens.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from training.reproduce.plan import PlannedRun
from training.reproduce.results import SeedMean, seed_mean
from training.reproduce.runner import read_record

PARTS = ("visible", "masked")
_WINDOW = 3  # lines of the log


@dataclass(frozen=True, slots=True, kw_only=True)
class Fall:
    """Loss on one part of the patches over seeds, at the start of the training and at its end."""

    variant: str
    part: str
    first: SeedMean
    last: SeedMean

    @property
    def change(self) -> SeedMean:
        """Last minus first, seed by seed."""
        pairs = zip(self.last.values, self.first.values, strict=True)
        return seed_mean([last - first for last, first in pairs])


def falls(runs: Sequence[PlannedRun]) -> list[Fall]:
    """Read the logs of all finished runs that masked something."""
    ends: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for run in runs:
        if run.is_measured and read_record(run.config.folder) is not None:
            for part in PARTS:
                values = _logged(run.config.folder / "log.jsonl", f"patch_{part}")
                if values:
                    pair = (_mean(values[:_WINDOW]), _mean(values[-_WINDOW:]))
                    ends.setdefault((run.variant, part), []).append(pair)
    return [
        Fall(
            variant=variant,
            part=part,
            first=seed_mean([first for first, _ in pairs]),
            last=seed_mean([last for _, last in pairs]),
        )
        for (variant, part), pairs in ends.items()
    ]


def _logged(path: Path, name: str) -> list[float]:
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [float(row[name]) for row in rows if name in row]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
