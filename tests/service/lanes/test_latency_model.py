"""Latency curves follow what batches take, and the warm-up chooses the batch size by them."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.lanes.latency_model import (
    DECAY_S,
    MAX_BUCKETS,
    MAX_RUNS,
    LatencyCurve,
    LatencyModel,
    WarmUpRules,
    fit_curve,
    measure,
)
from service.lanes.work import BatchLimits, Bucket
from tests.service.conftest import Clock

SMALL, LARGE, TEXT = Bucket("image", (28, 28)), Bucket("image", (56, 56)), Bucket("text", (8,))
LIMITS = BatchLimits(max_items=4, max_cost=100)


@pytest.fixture
def model(clock: Clock) -> LatencyModel:
    made = LatencyModel({"image": LIMITS, "text": LIMITS}, clock)
    curves = {SMALL: LatencyCurve(0.1, 0.2), TEXT: LatencyCurve(0.4, 0.1)}
    made.set_measured(curves, lambda bucket: {SMALL: 4, TEXT: 8}[bucket])
    return made


@given(
    intercept_s=st.floats(0, 10),
    slope_s=st.floats(0.001, 10),
    sizes=st.sets(st.integers(1, 64), min_size=2),
)
def test_a_straight_line_is_fitted_exactly(
    intercept_s: float, slope_s: float, sizes: set[int]
) -> None:
    line = LatencyCurve(intercept_s, slope_s)
    found = fit_curve({n: line.seconds(n) for n in sizes})
    for n in (1, 5, 64):
        assert found.seconds(n) == pytest.approx(line.seconds(n), rel=1e-6, abs=1e-6)


@given(st.dictionaries(st.integers(1, 64), st.floats(0, 100), min_size=1))
def test_no_part_of_a_fitted_curve_is_negative(times: dict[int, float]) -> None:
    found = fit_curve(times)
    assert found.slope_s >= 0
    assert found.intercept_s >= -1e-9


def test_a_curve_rises_with_slow_batches_and_decays(model: LatencyModel, clock: Clock) -> None:
    for _ in range(100):
        model.observe(SMALL, 2, 1.0)  # twice what was measured
    assert model.batch_s(SMALL, 2) == pytest.approx(1.0, rel=0.01)
    assert model.curves()[SMALL].slope_s == pytest.approx(0.4, rel=0.01)
    assert model.batch_s(TEXT, 1) == pytest.approx(0.5), "each bucket learns for itself"
    clock.now = 10 * DECAY_S
    assert model.batch_s(SMALL, 2) == pytest.approx(0.5, rel=0.01)


def test_a_curve_falls_after_a_slow_warm_up(model: LatencyModel, clock: Clock) -> None:
    for _ in range(10):
        model.observe(SMALL, 2, 0.1)  # a fifth of what was measured
    assert model.batch_s(SMALL, 2) < 0.18
    for _ in range(90):
        model.observe(SMALL, 2, 0.1)
    assert model.batch_s(SMALL, 2) == pytest.approx(0.1, rel=0.01)
    clock.now = 10 * DECAY_S
    assert model.batch_s(SMALL, 2) == pytest.approx(0.1, rel=0.01)


def test_one_outlier_changes_a_curve_little(model: LatencyModel) -> None:
    model.observe(SMALL, 1, 1000.0)
    assert model.batch_s(SMALL, 1) < 1.5 * 0.3


def test_an_unmeasured_shape_scales_by_its_size(model: LatencyModel) -> None:
    assert model.batch_s(LARGE, 1) == pytest.approx(4 * 0.3)
    model.observe(LARGE, 2, 8.0)
    assert model.batch_s(LARGE, 1) == pytest.approx(4.0), "until one has run"


def test_the_least_time_is_that_of_the_cheapest_kind_or_of_the_given_one(
    model: LatencyModel, clock: Clock
) -> None:
    rate_s = (0.1 + 0.4 / 4) / 8
    assert model.item_s(SMALL) == pytest.approx(0.2 + 0.1 / 4), "in a full batch"
    assert model.least_s(4, 2) == pytest.approx(4 * rate_s), "one item goes to one lane"
    assert model.least_s(16, 2) == pytest.approx(8 * rate_s)
    assert model.least_s(0, 2) == 0
    deep = Bucket("depth", (28, 28))
    model = LatencyModel({"image": LIMITS, "depth": LIMITS}, clock)
    assert (model.batch_s(SMALL, 3), model.item_s(SMALL), model.least_s(5, 1)) == (0, 0, 0)
    model.set_measured({SMALL: LatencyCurve(0, 0.2), deep: LatencyCurve(0, 0.6)}, lambda _: 4)
    assert model.least_s(8, 1, "depth") == pytest.approx(1.2)
    assert model.least_s(8, 1, "image") == model.least_s(8, 1) == pytest.approx(0.4)
    assert model.least_s(8, 1, "normals") == model.least_s(8, 1), "not measured"


def test_the_number_of_learned_shapes_is_bounded(model: LatencyModel) -> None:
    for height in range(14, 14 * (MAX_BUCKETS + 50), 14):
        model.observe(Bucket("image", (height, 14)), 1, 1.0)
    assert len(model._learned) == MAX_BUCKETS
    assert set(model.curves()) == {SMALL, TEXT}


NATIVE, WIDE = SMALL, Bucket("image", (28, 56))
FIRST_S = {NATIVE: 9.0, WIDE: 18.0, TEXT: 3.0}
RULES = WarmUpRules(max_images=None, most_images=64, max_texts=64, limit_s=10.0)
# Making synthetic items and validating their outputs is no part of a batch.
CHECK_S = 0.01


class TimedLane:
    """Advances the test's clock by the given seconds."""

    def __init__(self, seconds: Callable[[Bucket, int], float]) -> None:
        self.now = 0.0
        self.runs: Counter[tuple[Bucket, int]] = Counter()
        self._seconds = seconds

    def run_synthetic(self, bucket: Bucket, num_items: int = 1) -> float:
        self.runs[bucket, num_items] += 1
        seconds = self._seconds(bucket, num_items)
        self.now += seconds + CHECK_S
        return seconds

    def clock(self) -> float:
        return self.now


def cpu(bucket: Bucket, num_items: int) -> float:
    """An item costs the same in any batch."""
    return num_items * {NATIVE: 0.003, WIDE: 0.006, TEXT: 0.001}[bucket]


def device(bucket: Bucket, num_items: int) -> float:
    """Sixteen images cost as much as one."""
    return 0.005 * -(-num_items // 16)


def test_batches_stay_short_without_a_gain() -> None:
    lane = TimedLane(cpu)
    warm = measure(lane, FIRST_S, RULES, lane.clock)
    assert warm.max_images == 4
    for bucket, item_s in ((NATIVE, 0.003), (WIDE, 0.006), (TEXT, 0.001)):
        assert warm.curves[bucket].slope_s == pytest.approx(item_s)
        assert warm.curves[bucket].intercept_s == pytest.approx(0, abs=1e-9)
    assert max(n for _, n in lane.runs) <= 16
    assert lane.now < 0.5


@pytest.mark.parametrize(
    ("seconds", "rules", "chosen", "largest"),
    [
        (lambda *run: 100 * cpu(*run), RULES, 1, 16),
        (device, RULES, 16, 64),
        (device, replace(RULES, most_images=5, max_texts=1), 4, 4),
        (cpu, replace(RULES, max_images=7), 7, 16),
    ],
    ids=["slow images", "batches grow while images get cheaper", "bounded", "set"],
)
def test_the_batch_size_follows_the_gain_and_its_bounds(
    seconds: Callable[[Bucket, int], float], rules: WarmUpRules, chosen: int, largest: int
) -> None:
    lane = TimedLane(seconds)
    assert measure(lane, FIRST_S, rules, lane.clock).max_images == chosen
    assert max(n for _, n in lane.runs) <= largest
    assert rules.max_images is None or lane.runs[NATIVE, chosen] == MAX_RUNS


def test_a_disturbed_measurement_is_not_a_gain() -> None:
    lane = TimedLane(cpu)

    def disturbed(bucket: Bucket, num_items: int) -> float:
        is_first_time = lane.runs[bucket, num_items] <= MAX_RUNS
        return cpu(bucket, num_items) * (3 if num_items == 4 and is_first_time else 1)

    lane._seconds = disturbed
    assert measure(lane, FIRST_S, RULES, lane.clock).max_images == 4


def test_images_that_cost_more_to_stack_than_to_compute_run_alone() -> None:
    lane = TimedLane(lambda bucket, num_items: 0.0001 * num_items * (1 if num_items == 1 else 4))
    warm = measure(lane, FIRST_S, RULES, lane.clock)
    assert warm.max_images == 1
    assert max(n for bucket, n in lane.runs if bucket == NATIVE) == 4


def test_measuring_stops_at_the_time_limit() -> None:
    lane = TimedLane(lambda bucket, num_items: 2 * num_items)
    rules = replace(RULES, limit_s=1.0)
    warm = measure(lane, FIRST_S, rules, lane.clock)
    assert sum(lane.runs.values()) == 1, "none starts after the limit"
    assert warm.curves[NATIVE].seconds(1) == pytest.approx(2)
    assert warm.curves[WIDE].seconds(1) == pytest.approx(8), "twice the size, at most four times"
    assert warm.curves[TEXT].seconds(1) == pytest.approx(3)


def test_each_head_has_its_own_curve() -> None:
    head = {Bucket("depth", (28, 28)): 2.0, Bucket("depth", (28, 56)): 4.0}
    lane = TimedLane(
        lambda bucket, n: n * 0.001 * head[bucket] if bucket in head else cpu(bucket, n)
    )
    rules = replace(RULES, max_images=6)
    warm = measure(lane, {**FIRST_S, **head}, rules, lane.clock)
    native, wide = head
    assert warm.max_images == 6
    assert warm.curves[native].slope_s == pytest.approx(0.002)
    assert warm.curves[wide].slope_s == pytest.approx(0.004)
    assert warm.curves[WIDE].slope_s == pytest.approx(0.006), "as before"
    assert lane.runs[native, 3] == MAX_RUNS, "half as many as of embedded images"
    assert max(n for bucket, n in lane.runs if bucket in head) == 3


def test_without_time_the_first_runs_count() -> None:
    lane = TimedLane(cpu)
    rules = replace(RULES, limit_s=0.0)
    warm = measure(lane, FIRST_S, rules, lane.clock)
    assert not lane.runs
    assert {b: c.seconds(1) for b, c in warm.curves.items()} == pytest.approx(FIRST_S)
