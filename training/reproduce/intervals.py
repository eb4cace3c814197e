"""What a few seeds allow to say of a difference: its mean, a t-interval, and how many agree.

Knows numbers only.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

# Two-sided 95 % points of Student's t by degrees of freedom; the normal's beyond the table.
_T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
_NORMAL_95 = 1.960

Verdict = Literal["yes", "in sign only", "the opposite", "no"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedMean:
    """Values of several seeds.

    Attributes:
        values: One a seed.
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
    """Summarise one value a seed.

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
    """Judge paired differences that a claim says are above zero.

    "yes" needs a 95 % t-interval above zero, "the opposite" one below it; where all of at least
    two seeds are above zero and the interval is not, the effect holds "in sign only".
    """
    if differences.low > 0:
        return "yes"
    if differences.high < 0:
        return "the opposite"
    if len(differences.values) > 1 and min(differences.values) > 0:
        return "in sign only"
    return "no"
