"""Results of arms over seeds: means, paired differences, verdicts on the paper's rows."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.reproduce.origin import known_weights

# Two-sided 95 % points of Student's t by degrees of freedom; the normal's beyond the table.
_T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
_NORMAL_95 = 1.960


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedMean:
    """Values of several seeds.

    Attributes:
        values: One per seed.
        mean: Their mean.
        half_width: Half of the 95 % t-interval of the mean; NaN for one seed.
    """

    values: tuple[float, ...]
    mean: float
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
    half_width = math.nan
    if count > 1:
        spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
        point = _T_95[count - 2] if count - 2 < len(_T_95) else _NORMAL_95
        half_width = point * spread / math.sqrt(count)
    return SeedMean(values=tuple(values), mean=mean, half_width=half_width)


Value = Callable[[dict[str, Any]], float]


def score(row: str, *, scenes: str = "seen", metric: str = "mIoU") -> Value:
    """A score of a result, such as the mIoU of "patches" in scenes of "seen" styles."""
    return lambda result: float(result["scores"][scenes][row][metric])


def last_loss(name: str) -> Value:
    """A loss at the end of an arm."""
    return lambda result: float(result["losses"][name][1])


class Results:
    """The results in a folder.

    Raises:
        ValueError: Some were made with other settings than the rest, or a seed's from different
            weights.
    """

    def __init__(self, folder: Path) -> None:
        self._by_arm: dict[tuple[str, int], dict[str, Any]] = {}
        for path in sorted(folder.glob("seed-*/*.json")):
            result = json.loads(path.read_text(encoding="utf-8"))
            self._by_arm[result["arm"], result["seed"]] = result
        settings = {result["settings"] for result in self._by_arm.values()}
        if len(settings) > 1:
            raise ValueError(f"{folder} mixes results of different settings: {sorted(settings)}")
        for seed in {seed for _, seed in self._by_arm}:
            known_weights([r for (_, number), r in self._by_arm.items() if number == seed])

    def seeds(self, *arms: str) -> list[int]:
        """Seeds that have a result of every one of some arms."""
        known = {seed for _, seed in self._by_arm}
        return sorted(s for s in known if all((arm, s) in self._by_arm for arm in arms))

    def one(self, arm: str, seed: int) -> dict[str, Any]:
        """One result."""
        return self._by_arm[arm, seed]

    def level(self, arm: str, value: Value) -> SeedMean:
        """A value of an arm over its seeds."""
        return seed_mean([value(self._by_arm[arm, seed]) for seed in self.seeds(arm)])

    def difference(self, first: str, second: str, value: Value) -> SeedMean:
        """Paired differences over the seeds that have both arms."""
        return seed_mean(
            [
                value(self._by_arm[first, seed]) - value(self._by_arm[second, seed])
                for seed in self.seeds(first, second)
            ]
        )

    def within(self, arm: str, first: Value, second: Value) -> SeedMean:
        """Paired differences of two values of one arm."""
        return self.level(arm, lambda result: first(result) - second(result))
