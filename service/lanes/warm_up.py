"""Measures before the server is ready what batches cost, and from that how large they should be.

It runs on one lane while the others are idle, and for a bounded time: where that is over, what was
measured so far has to do.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from service.call import Clock
from service.lanes.latency_model import CostCurve, fit_curve
from service.lanes.work import Bucket, Kind

MAX_RUNS: Final = 3
# Batches shorter than this may hold a few items though that makes none cheaper: fewer hand-overs.
SHORT_BATCH_S: Final = 0.02
SHORT_BATCH_ITEMS: Final = 4
# Batches grow as long as an item gets so much cheaper by it.
WORTHWHILE: Final = 0.95
TEXT_BATCH: Final = 16
# A dense head takes about as much time and memory as the backbone before it, so that a batch holds
# half as many of its images; what they cost is measured.
IMAGE_WORK: Final[Mapping[Kind, int]] = {"image": 1, "depth": 2, "normals": 2}


class Trial(Protocol):
    """What is measured; see `service.lanes.worker.Lane`."""

    def try_out(self, bucket: Bucket, num_items: int = 1) -> None:
        """Run one batch of made-up items."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmUpRules:
    """What bounds the measuring.

    Attributes:
        max_images: Images of one batch where that is set, None where it is to be found.
        most_images: What a batch may hold at the most.
        max_texts: Texts of one batch.
        limit_s: Seconds after which no further batch is begun.
    """

    max_images: int | None
    most_images: int
    max_texts: int
    limit_s: float


@dataclass(frozen=True, slots=True)
class WarmUp:
    """The curve of every served shape, and how many embedded images a batch should hold."""

    curves: Mapping[Bucket, CostCurve]
    max_images: int


def measure(
    lane: Trial, first_s: Mapping[Bucket, float], rules: WarmUpRules, clock: Clock
) -> WarmUp:
    """Time batches of the served shapes.

    Args:
        lane: Which nobody else uses meanwhile.
        first_s: Seconds that the very first item of each shape took; the native one comes first.
        rules: Its bounds.
        clock: Monotonic seconds.
    """
    until = clock() + rules.limit_s
    # The first of each kind. What it costs is measured in batches of several sizes.
    natives: dict[Kind, Bucket] = {}
    for bucket in first_s:
        natives.setdefault(bucket.kind, bucket)

    def best_s(bucket: Bucket, num_items: int) -> float | None:
        # The other shapes' times only scale the native curve, and what runs later corrects them.
        is_native = bucket.is_image and bucket == natives[bucket.kind]
        num_runs = MAX_RUNS if is_native else 1
        return _best_s(lambda: lane.try_out(bucket, num_items), num_runs, until=until, clock=clock)

    native = natives["image"]
    times = {1: best_s(native, 1) or first_s[native]}
    max_images = rules.max_images or _batch_size(native, times, rules, best_s)
    if max_images not in times and (seconds := best_s(native, max_images)):
        times[max_images] = seconds
    curves = {native: fit_curve(times)}
    for bucket in first_s:
        if bucket == native:
            continue
        alone_s = best_s(bucket, 1) or first_s[bucket]
        if bucket == natives[bucket.kind]:
            num_items = min(TEXT_BATCH, rules.max_texts)
            if bucket.is_image:
                num_items = max_images // IMAGE_WORK[bucket.kind]
            together_s = best_s(bucket, num_items) if num_items > 1 else None
            together = {num_items: together_s} if together_s else {}
            curves[bucket] = fit_curve({1: alone_s, **together})
        else:
            curves[bucket] = _scaled(
                curves[natives[bucket.kind]], natives[bucket.kind], bucket, alone_s
            )
    return WarmUp(curves, max_images)


def _scaled(curve: CostCurve, native: Bucket, bucket: Bucket, alone_s: float) -> CostCurve:
    """The curve of another shape, of which one item was timed.

    What a batch adds to its items is in the same proportion for images of any shape, and none
    costs more than by the square of its size: what was slower was disturbed.
    """
    size = math.prod(bucket.shape) / math.prod(native.shape)
    slower = alone_s / curve.seconds(1)
    return curve.times(min(slower, max(size, size**2)))


def _batch_size(
    native: Bucket,
    times: dict[int, float],
    rules: WarmUpRules,
    best_s: Callable[[Bucket, int], float | None],
) -> int:
    """Double the batch for as long as that makes an item cheaper; what was timed is added."""
    size = max(1, min(SHORT_BATCH_ITEMS, rules.most_images, int(SHORT_BATCH_S / times[1])))
    if size not in times:
        seconds = best_s(native, size)
        if seconds is None:
            return size
        times[size] = seconds
    while 2 * size <= rules.most_images:
        seconds = best_s(native, 2 * size)
        if seconds is None:
            break
        times[2 * size] = seconds
        if seconds / 2 <= WORTHWHILE * times[size]:
            # Once more: was the larger batch cheaper, or the smaller one disturbed?
            times[size] = min(times[size], best_s(native, size) or math.inf)
        if seconds / 2 > WORTHWHILE * times[size]:
            break
        size *= 2
    return size


def _best_s(run: Callable[[], None], num_runs: int, *, until: float, clock: Clock) -> float | None:
    """Seconds of the quickest of a few runs, for others only disturb; None where time is over."""
    best: float | None = None
    for _ in range(num_runs):
        began = clock()
        if began >= until:
            break
        run()
        best = min(best or clock() - began, clock() - began)
    return best
