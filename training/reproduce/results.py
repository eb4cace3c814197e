"""Scores and paired differences of measured runs, over seeds and over scenes.

Shapes: S scenes, R resamples of the scenes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from training.evaluate.bootstrap import bootstrap
from training.evaluate.zero_shot_segmentation import SceneCounts
from training.reproduce.plan import AVERAGED, PlannedRun
from training.reproduce.runner import (
    AVERAGE_MEASURES,
    MEASURES,
    Measures,
    counts_of,
    load_measures,
)

# Two-sided 95 % points of Student's t by degrees of freedom; the normal's beyond the table.
_T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
_NORMAL_95 = 1.960
Verdict = Literal["yes", "in sign only", "the opposite", "no"]
Metric = Literal["mIoU", "which"]
METRICS: tuple[Metric, ...] = ("mIoU", "which")


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedMean:
    """Values of several seeds.

    Attributes:
        values: One per seed.
        mean: Their mean.
        spread: Sample standard deviation; NaN for one seed.
        half_width: Half of the 95 % t-interval of the mean; NaN for one seed.
    """

    values: tuple[float, ...]
    mean: float
    spread: float
    half_width: float

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return self.mean + self.half_width


def seed_mean(values: Sequence[float]) -> SeedMean:
    """Summarise one value per seed.

    Raises:
        ValueError: There is none.
    """
    if not values:
        raise ValueError("a mean over seeds needs at least one seed")
    count, mean = len(values), math.fsum(values) / len(values)
    spread = half_width = math.nan
    if count > 1:
        spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
        point = _T_95[count - 2] if count - 2 < len(_T_95) else _NORMAL_95
        half_width = point * spread / math.sqrt(count)
    return SeedMean(values=tuple(values), mean=mean, spread=spread, half_width=half_width)


def verdict(differences: SeedMean) -> Verdict:
    """Judge paired differences that should be above zero.

    "yes" if the 95 % t-interval is above zero, "the opposite" if it is below; "in sign only" if the
    interval includes zero and at least two seeds, all of them, are above zero.
    """
    if differences.low > 0:
        return "yes"
    if differences.high < 0:
        return "the opposite"
    if len(differences.values) > 1 and min(differences.values) > 0:
        return "in sign only"
    return "no"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """Scenes, row and metric of a score."""

    scenes: str
    row: str
    metric: Metric


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Paired differences of two variants.

    Attributes:
        seeds: One difference per seed.
        low: 2.5 % point of their mean over resampled scenes with the same seeds.
        high: 97.5 % point.
    """

    seeds: SeedMean
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _SeedCounts:
    """Counts of one variant in several seeds, all on the same scenes."""

    by_seed: tuple[SceneCounts, ...]

    def __len__(self) -> int:
        return len(self.by_seed[0])


def _mean_score(
    metric: Metric, counts: _SeedCounts, weights_RS: NDArray[np.float64]
) -> NDArray[np.float64]:
    by_seed = [
        c.miou(weights_RS) if metric == "mIoU" else c.which(weights_RS) for c in counts.by_seed
    ]
    mean_R: NDArray[np.float64] = np.stack(by_seed).mean(0)
    return mean_R


def _score(counts: SceneCounts, metric: Metric) -> float:
    return counts.miou() if metric == "mIoU" else counts.which()


class Results:
    """The finished measurements of some runs."""

    def __init__(self, runs: Sequence[PlannedRun]) -> None:
        self._measures: dict[tuple[str, int], Measures] = {}
        for run in runs:
            files = {run.variant: MEASURES} if run.is_measured else {}
            if run.has_average:
                files[AVERAGED] = AVERAGE_MEASURES
            for variant, file in files.items():
                if (run.config.folder / file).exists():
                    measures = load_measures(run.config.folder / file)
                    self._measures[variant, run.seed] = measures

    def seeds(self, *variants: str) -> list[int]:
        """Seeds in which all of some variants are measured."""
        known = {seed for _, seed in self._measures}
        return sorted(s for s in known if all((v, s) in self._measures for v in variants))

    def level(self, variant: str, cell: Cell) -> SeedMean:
        """A variant's score over its seeds."""
        return seed_mean([_score(c, cell.metric) for c in self._counts(variant, cell)])

    def difference(self, better: str, worse: str, cell: Cell) -> Difference:
        """Paired differences of two variants over the seeds that have both."""
        seeds = self.seeds(better, worse)
        first, second = (self._counts(name, cell, seeds) for name in (better, worse))
        return _difference(first, second, cell.metric)

    def retrieval(self, variant: str, scenes: str, direction: str) -> SeedMean:
        """Recall at 1 in percent over a variant's seeds."""
        key = f"{scenes}/retrieval/{direction}"
        seeds = self.seeds(variant)
        return seed_mean([100.0 * float(self._measures[variant, s][key].mean()) for s in seeds])

    def _counts(
        self, variant: str, cell: Cell, seeds: Sequence[int] | None = None
    ) -> tuple[SceneCounts, ...]:
        chosen = self.seeds(variant) if seeds is None else seeds
        return tuple(
            counts_of(self._measures[variant, seed], cell.scenes, cell.row) for seed in chosen
        )


def _difference(
    first: tuple[SceneCounts, ...], second: tuple[SceneCounts, ...], metric: Metric
) -> Difference:
    values = [_score(a, metric) - _score(b, metric) for a, b in zip(first, second, strict=True)]
    interval = bootstrap(
        lambda counts, weights_RS: _mean_score(metric, counts, weights_RS),
        _SeedCounts(by_seed=first),
        _SeedCounts(by_seed=second),
    )
    return Difference(seeds=seed_mean(values), low=interval.low, high=interval.high)
