"""Measured cost of a batch by its size, for admission and batch limits."""

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from service.call import Clock
from service.lanes.work import BatchLimits, Bucket, Kind

WEIGHT: Final = 0.1
# A batch that takes more than so many times what was expected counts as an accident.
MAX_RATIO: Final = 4.0
FADE_S: Final = 30.0
# Every request asks for the cheapest rate, which moves slowly: it is worked out only so often.
RATE_S: Final = 0.5
MAX_BUCKETS: Final = 256


@dataclass(frozen=True, slots=True)
class CostCurve:
    """Seconds of a batch: so much for being a batch, and so much for each item."""

    intercept_s: float
    slope_s: float

    def seconds(self, num_items: int) -> float:
        """Of a batch of so many items."""
        return self.intercept_s + self.slope_s * num_items

    def times(self, factor: float) -> "CostCurve":
        """The curve of a machine so many times slower."""
        return CostCurve(self.intercept_s * factor, self.slope_s * factor)


def fit_curve(seconds: Mapping[int, float]) -> CostCurve:
    """The line through measured batches, by least squares; neither of its parts is negative.

    Args:
        seconds: By number of items; at least one.
    """
    mean_n = sum(seconds) / len(seconds)
    mean_s = sum(seconds.values()) / len(seconds)
    spread = sum((n - mean_n) ** 2 for n in seconds)
    if spread == 0:
        return CostCurve(0.0, mean_s / mean_n)
    slope_s = sum((n - mean_n) * (s - mean_s) for n, s in seconds.items()) / spread
    # Noise may tilt the line until it says that items are free, or that a batch is less than none.
    slope_s = min(max(slope_s, 0.0), mean_s / mean_n)
    return CostCurve(mean_s - slope_s * mean_n, slope_s)


@dataclass(slots=True)
class _Learned:
    base: CostCurve
    item_cost: int
    factor: float
    observed: float
    num_observed: int = 0

    def factor_at(self, now: float) -> float:
        return 1 + (self.factor - 1) * math.exp((self.observed - now) / FADE_S)


@dataclass(frozen=True, slots=True)
class _Rate:
    """Seconds for each patch or token, and the cost of the smallest item."""

    seconds: float
    smallest: int

    def least(self, other: "_Rate") -> "_Rate":
        return _Rate(min(self.seconds, other.seconds), min(self.smallest, other.smallest))


class CostBook:
    """The curves of one model's buckets. Thread-safe."""

    def __init__(self, limits: Mapping[Kind, BatchLimits], clock: Clock) -> None:
        self._limits = limits
        self._clock = clock
        self._measured: dict[Bucket, _Learned] = {}
        self._met: OrderedDict[Bucket, _Learned] = OrderedDict()
        self._lock = threading.Lock()
        self._rates: dict[Kind | None, _Rate] = {}
        self._rate_until = -math.inf

    def begin(self, curves: Mapping[Bucket, CostCurve], item_cost: Callable[[Bucket], int]) -> None:
        """Begin with these, which the warm-up measured; an item's cost is in patches or tokens."""
        now = self._clock()
        with self._lock:
            self._rate_until = -math.inf
            self._measured = {
                bucket: _Learned(curve, item_cost(bucket), 1.0, now)
                for bucket, curve in curves.items()
            }

    def observe(self, bucket: Bucket, num_items: int, seconds: float) -> None:
        """Learn from a batch that ran."""
        now = self._clock()
        with self._lock:
            known = self._known(bucket)
            if known is None:
                self._met[bucket] = _Learned(CostCurve(0.0, seconds / num_items), 1, 1.0, now)
                if len(self._met) > MAX_BUCKETS:
                    self._met.popitem(last=False)
                return
            factor = known.factor_at(now)
            expected_s = known.base.times(factor).seconds(num_items)
            ratio = seconds / expected_s if expected_s > 0 else 1.0
            known.num_observed += 1
            # No batch is quick by accident: the first that are count for more than the warm-up.
            weight = max(WEIGHT, 1 / (1 + known.num_observed)) if ratio < 1 else WEIGHT
            factor *= 1 + weight * (min(ratio, MAX_RATIO) - 1)
            if factor < 1:
                known.base = known.base.times(factor)
            known.factor = max(factor, 1.0)
            known.observed = now

    def curves(self) -> dict[Bucket, CostCurve]:
        """As they are now, of the buckets that the warm-up measured."""
        now = self._clock()
        with self._lock:
            return {
                b: known.base.times(known.factor_at(now)) for b, known in self._measured.items()
            }

    def batch_s(self, bucket: Bucket, num_items: int) -> float:
        """Seconds of a batch, 0 where nothing like it has been measured."""
        with self._lock:
            curve = self._curve(bucket)
        return curve.seconds(num_items) if curve else 0.0

    def item_s(self, bucket: Bucket) -> float:
        """Seconds of a lane for one item in a full batch: the least that it can cost."""
        with self._lock:
            curve = self._curve(bucket)
        if curve is None:
            return 0.0
        return curve.slope_s + curve.intercept_s / self._limits[bucket.kind].max_items

    def least_s(self, cost: int, num_lanes: int, kind: Kind | None = None) -> float:
        """Seconds that work of this cost takes at the least, on so many free lanes.

        Of work of no one kind nothing is assumed but its cost: it counts as of the cheapest. Items
        count as of the smallest measured size.
        """
        now = self._clock()
        if now >= self._rate_until:
            self._rates = self._cheapest()
            self._rate_until = now + RATE_S
        rate = self._rates.get(kind) or self._rates.get(None)
        if rate is None or not cost:
            return 0.0
        return rate.seconds * cost / min(num_lanes, -(-cost // rate.smallest))

    def _cheapest(self) -> dict[Kind | None, _Rate]:
        """The best rate of each measured kind, and under None that of all together."""
        with self._lock:
            costs = {bucket: learned.item_cost for bucket, learned in self._measured.items()}
        rates: dict[Kind | None, _Rate] = {}
        for bucket, cost in costs.items():
            rate = _Rate(self.item_s(bucket) / cost, cost)
            for kind in (bucket.kind, None):
                rates[kind] = rate.least(rates.get(kind, rate))
        return rates

    def _curve(self, bucket: Bucket) -> CostCurve | None:
        """The bucket's own, else that of the measured one of its kind that is nearest in size."""
        known = self._known(bucket)
        if known is not None:
            return known.base.times(known.factor_at(self._clock()))
        alike = [b for b in self._measured if b.kind == bucket.kind]
        if not alike:
            return None
        size = math.prod(bucket.shape)
        nearest = min(alike, key=lambda b: abs(math.log(math.prod(b.shape) / size)))
        learned = self._measured[nearest]
        larger = size / math.prod(nearest.shape)
        return learned.base.times(larger * learned.factor_at(self._clock()))

    def _known(self, bucket: Bucket) -> _Learned | None:
        return self._measured.get(bucket) or self._met.get(bucket)
