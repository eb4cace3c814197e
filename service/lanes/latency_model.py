"""Latency of a batch by its size: measured in the warm-up, then updated by every batch.

Admission estimates waiting times with it, and the warm-up chooses the batch size with it. The
warm-up runs on one lane while the others are idle, for a bounded time: what it has measured when
that is over must do.
"""

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

from service.call import Clock
from service.lanes.work import BatchLimits, Bucket, Kind

# Weight of one batch in the moving average.
WEIGHT: Final = 0.1
# A batch slower than expected by a larger factor counts as slower by this factor only.
MAX_RATIO: Final = 4.0
# Slowness that was observed decays with this time constant.
DECAY_S: Final = 30.0
# Every request asks for the cheapest rate, which changes slowly: it is cached for this time.
RATE_CACHE_S: Final = 0.5
# Clients choose shapes, so the shapes that are learned at run time are bounded.
MAX_BUCKETS: Final = 256

# Runs of each batch size on the native shape; the fastest counts.
MAX_RUNS: Final = 3
# Batches shorter than this may hold a few items even if items get no cheaper: fewer hand-overs.
SHORT_BATCH_S: Final = 0.02
SHORT_BATCH_ITEMS: Final = 4
# But not if an item costs so many times as much as alone: to stack images takes longer then than
# the model does, as with one of no operation (0.13 ms an image of 224 pixels).
MAX_STACKING: Final = 1.5
# Batch sizes double as long as the cost of an item falls at least to this share.
WORTHWHILE: Final = 0.95
TEXT_BATCH: Final = 16
# A dense head needs about as much time and memory as the backbone before it, so that its batches
# hold half as many images; their latency is measured.
IMAGE_WORK: Final[Mapping[Kind, int]] = {
    "image": 1,
    "depth": 2,
    "normals": 2,
    "segmentation": 2,
    "image+depth": 2,
    "image+normals": 2,
    "image+segmentation": 2,
    "image+depth+normals": 3,
    "image+depth+segmentation": 3,
    "image+normals+segmentation": 3,
    "image+depth+normals+segmentation": 4,
}


@dataclass(frozen=True, slots=True)
class LatencyCurve:
    """Seconds of a batch: a constant part, and a part for each item."""

    intercept_s: float
    slope_s: float

    def seconds(self, num_items: int) -> float:
        """Seconds of a batch of this size."""
        return self.intercept_s + self.slope_s * num_items

    def times(self, factor: float) -> "LatencyCurve":
        """The curve of a machine that is slower by this factor."""
        return LatencyCurve(self.intercept_s * factor, self.slope_s * factor)


def fit_curve(seconds: Mapping[int, float]) -> LatencyCurve:
    """Fit a line to measured batches by least squares; neither part is negative.

    Args:
        seconds: By number of items; at least one.
    """
    mean_n = sum(seconds) / len(seconds)
    mean_s = sum(seconds.values()) / len(seconds)
    spread = sum((n - mean_n) ** 2 for n in seconds)
    if spread == 0:
        return LatencyCurve(0.0, mean_s / mean_n)
    slope_s = sum((n - mean_n) * (s - mean_s) for n, s in seconds.items()) / spread
    # With noise the least squares may say that items are free, or that a batch is less than free.
    slope_s = min(max(slope_s, 0.0), mean_s / mean_n)
    return LatencyCurve(mean_s - slope_s * mean_n, slope_s)


@dataclass(slots=True)
class _Learned:
    base: LatencyCurve
    item_cost: int
    factor: float
    observed: float
    num_observed: int = 0

    def factor_at(self, now: float) -> float:
        return 1 + (self.factor - 1) * math.exp((self.observed - now) / DECAY_S)


@dataclass(frozen=True, slots=True)
class _Rate:
    """Seconds for each patch or token, and the cost of the smallest item."""

    seconds: float
    smallest: int

    def least(self, other: "_Rate") -> "_Rate":
        return _Rate(min(self.seconds, other.seconds), min(self.smallest, other.smallest))


class LatencyModel:
    """Latency curves of one model's buckets. Thread-safe."""

    def __init__(self, limits: Mapping[Kind, BatchLimits], clock: Clock) -> None:
        self._limits = limits
        self._clock = clock
        self._measured: dict[Bucket, _Learned] = {}
        self._learned: OrderedDict[Bucket, _Learned] = OrderedDict()
        self._lock = threading.Lock()
        self._rates: dict[Kind | None, _Rate] = {}
        self._rate_until = -math.inf

    def set_measured(
        self, curves: Mapping[Bucket, LatencyCurve], item_cost: Callable[[Bucket], int]
    ) -> None:
        """Start from the curves of the warm-up; `item_cost` is in patches or tokens."""
        now = self._clock()
        with self._lock:
            self._rate_until = -math.inf
            self._measured = {
                bucket: _Learned(curve, item_cost(bucket), 1.0, now)
                for bucket, curve in curves.items()
            }

    def observe(self, bucket: Bucket, num_items: int, seconds: float) -> None:
        """Update the curve of a bucket by a batch that ran."""
        now = self._clock()
        with self._lock:
            known = self._known(bucket)
            if known is None:
                self._learned[bucket] = _Learned(
                    LatencyCurve(0.0, seconds / num_items), 1, 1.0, now
                )
                if len(self._learned) > MAX_BUCKETS:
                    self._learned.popitem(last=False)
                return
            factor = known.factor_at(now)
            expected_s = factor * known.base.seconds(num_items)
            ratio = seconds / expected_s if expected_s > 0 else 1.0
            known.num_observed += 1
            # No batch is fast by accident, so the first faster ones outweigh the warm-up.
            weight = max(WEIGHT, 1 / (1 + known.num_observed)) if ratio < 1 else WEIGHT
            factor *= 1 + weight * (min(ratio, MAX_RATIO) - 1)
            if factor < 1:
                known.base = known.base.times(factor)
            known.factor = max(factor, 1.0)
            known.observed = now

    def curves(self) -> dict[Bucket, LatencyCurve]:
        """Current curves of the buckets that the warm-up measured."""
        now = self._clock()
        with self._lock:
            return {
                b: known.base.times(known.factor_at(now)) for b, known in self._measured.items()
            }

    def batch_s(self, bucket: Bucket, num_items: int) -> float:
        """Seconds of a batch; 0 if nothing of this kind was measured."""
        with self._lock:
            known = self._known(bucket)
            if known is not None:
                return known.factor_at(self._clock()) * known.base.seconds(num_items)
            curve = self._curve(bucket)
        return curve.seconds(num_items) if curve else 0.0

    def item_s(self, bucket: Bucket) -> float:
        """Seconds of a lane for one item of a full batch, which is the least possible."""
        with self._lock:
            curve = self._curve(bucket)
        if curve is None:
            return 0.0
        return curve.slope_s + curve.intercept_s / self._limits[bucket.kind].max_items

    def least_s(self, cost: int, num_lanes: int, kind: Kind | None = None) -> float:
        """Least seconds that work of this cost takes on this many idle lanes.

        Work of mixed kinds counts by the cheapest kind, and items count as of the smallest measured
        size.
        """
        now = self._clock()
        if now >= self._rate_until:
            self._rates = self._cheapest_rates()
            self._rate_until = now + RATE_CACHE_S
        rate = self._rates.get(kind) or self._rates.get(None)
        if rate is None or not cost:
            return 0.0
        return rate.seconds * cost / min(num_lanes, -(-cost // rate.smallest))

    def _cheapest_rates(self) -> dict[Kind | None, _Rate]:
        """The best rate of each measured kind, and under None the best of all kinds."""
        with self._lock:
            costs = {bucket: learned.item_cost for bucket, learned in self._measured.items()}
        rates: dict[Kind | None, _Rate] = {}
        for bucket, cost in costs.items():
            rate = _Rate(self.item_s(bucket) / cost, cost)
            for kind in (bucket.kind, None):
                rates[kind] = rate.least(rates.get(kind, rate))
        return rates

    def _curve(self, bucket: Bucket) -> LatencyCurve | None:
        """The bucket's own curve, else the scaled curve of the measured bucket nearest in size."""
        known = self._known(bucket)
        if known is not None:
            return known.base.times(known.factor_at(self._clock()))
        same_kind = [b for b in self._measured if b.kind == bucket.kind]
        if not same_kind:
            return None
        size = math.prod(bucket.shape)
        nearest = min(same_kind, key=lambda b: abs(math.log(math.prod(b.shape) / size)))
        learned = self._measured[nearest]
        larger = size / math.prod(nearest.shape)
        return learned.base.times(larger * learned.factor_at(self._clock()))

    def _known(self, bucket: Bucket) -> _Learned | None:
        return self._measured.get(bucket) or self._learned.get(bucket)


class SyntheticRunner(Protocol):
    """What the warm-up measures; see `service.lanes.lane.Lane`."""

    def run_synthetic(self, bucket: Bucket, num_items: int = 1) -> float:
        """Run one batch of synthetic items; returns its seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmUpRules:
    """Bounds of the warm-up.

    Attributes:
        max_images: Images of one batch if that is set; None to choose it by measuring.
        most_images: Upper bound of the choice.
        max_texts: Texts of one batch.
        limit_s: Seconds after which no further batch starts.
    """

    max_images: int | None
    most_images: int
    max_texts: int
    limit_s: float


@dataclass(frozen=True, slots=True)
class WarmUp:
    """Curve of every served shape, and number of images in a batch to embed."""

    curves: Mapping[Bucket, LatencyCurve]
    max_images: int


def measure(
    lane: SyntheticRunner, first_s: Mapping[Bucket, float], rules: WarmUpRules, clock: Clock
) -> WarmUp:
    """Time batches of the served shapes.

    Args:
        lane: Must be idle otherwise.
        first_s: Seconds that the very first item of each shape took; the native shape comes first.
        rules: Bounds.
        clock: Monotonic seconds.
    """
    until = clock() + rules.limit_s
    # The first shape of each kind, which is measured in batches of several sizes.
    natives: dict[Kind, Bucket] = {}
    for bucket in first_s:
        natives.setdefault(bucket.kind, bucket)

    def best_s(bucket: Bucket, num_items: int) -> float | None:
        # Times of other shapes only scale the native curve, and later batches correct them.
        is_native = bucket.is_image and bucket == natives[bucket.kind]
        num_runs = MAX_RUNS if is_native else 1
        run = partial(lane.run_synthetic, bucket, num_items)
        return _best_s(run, num_runs, until=until, clock=clock)

    native = natives["image"]
    times = {1: best_s(native, 1) or first_s[native]}
    max_images = rules.max_images or _choose_batch_size(native, times, rules, best_s)
    if max_images not in times and (seconds := best_s(native, max_images)):
        times[max_images] = seconds
    curves = {native: fit_curve(times)}
    for bucket in first_s:
        if bucket == native:
            continue
        single_s = best_s(bucket, 1) or first_s[bucket]
        if bucket == natives[bucket.kind]:
            num_items = min(TEXT_BATCH, rules.max_texts)
            if bucket.is_image:
                num_items = max_images // IMAGE_WORK[bucket.kind]
            batch_s = best_s(bucket, num_items) if num_items > 1 else None
            curves[bucket] = fit_curve({1: single_s} | ({num_items: batch_s} if batch_s else {}))
        else:
            curves[bucket] = _scaled(
                curves[natives[bucket.kind]], natives[bucket.kind], bucket, single_s
            )
    return WarmUp(curves, max_images)


def _scaled(curve: LatencyCurve, native: Bucket, bucket: Bucket, single_s: float) -> LatencyCurve:
    """The curve of another shape, of which a single item was timed.

    The constant part of a batch is in the same proportion for images of any shape. No image costs
    more than by the square of its size: a slower measurement was disturbed.
    """
    size = math.prod(bucket.shape) / math.prod(native.shape)
    slower = single_s / curve.seconds(1)
    return curve.times(min(slower, max(size, size**2)))


def _choose_batch_size(
    native: Bucket,
    times: dict[int, float],
    rules: WarmUpRules,
    best_s: Callable[[Bucket, int], float | None],
) -> int:
    """Double the batch while that makes an item cheaper; adds what it times to `times`."""
    size = max(1, min(SHORT_BATCH_ITEMS, rules.most_images, int(SHORT_BATCH_S / times[1])))
    if size not in times:
        seconds = best_s(native, size)
        if seconds is None:
            return size
        if seconds / size > MAX_STACKING * times[1]:  # perhaps it was disturbed
            seconds = min(seconds, best_s(native, size) or math.inf)
        times[size] = seconds
        if seconds / size > MAX_STACKING * times[1]:
            return 1
    while 2 * size <= rules.most_images:
        seconds = best_s(native, 2 * size)
        if seconds is None:
            break
        times[2 * size] = seconds
        if seconds / 2 <= WORTHWHILE * times[size]:
            # Time the smaller batch again: its first measurement may have been disturbed.
            times[size] = min(times[size], best_s(native, size) or math.inf)
        if seconds / 2 > WORTHWHILE * times[size]:
            break
        size *= 2
    return size


def _best_s(run: Callable[[], float], num_runs: int, *, until: float, clock: Clock) -> float | None:
    """Seconds of the fastest run, since other processes only slow runs down; None after `until`."""
    best: float | None = None
    for _ in range(num_runs):
        if clock() >= until:
            break
        seconds = run()
        best = min(best or seconds, seconds)
    return best
