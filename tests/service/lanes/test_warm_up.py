"""What the warm-up measures and chooses, on a lane whose costs and time are the test's."""

from collections import Counter
from collections.abc import Callable

import pytest

from service.lanes.warm_up import MAX_RUNS, WarmUpRules, measure
from service.lanes.work import Bucket

NATIVE, WIDE, TEXT = Bucket("image", (28, 28)), Bucket("image", (28, 56)), Bucket("text", (8,))
FIRST_S = {NATIVE: 9.0, WIDE: 18.0, TEXT: 3.0}
RULES = WarmUpRules(max_images=None, most_images=64, max_texts=64, limit_s=10.0)


class TimedLane:
    """Takes as long as it is told to, by the test's clock."""

    def __init__(self, seconds: Callable[[Bucket, int], float]) -> None:
        self.now = 0.0
        self.runs: Counter[tuple[Bucket, int]] = Counter()
        self._seconds = seconds

    def try_out(self, bucket: Bucket, num_items: int = 1) -> None:
        self.runs[bucket, num_items] += 1
        self.now += self._seconds(bucket, num_items)

    def clock(self) -> float:
        return self.now


def cpu(bucket: Bucket, num_items: int) -> float:
    """An item costs the same in any batch."""
    return num_items * {NATIVE: 0.003, WIDE: 0.006, TEXT: 0.001}[bucket]


def device(bucket: Bucket, num_items: int) -> float:
    """Sixteen images cost as much as one."""
    return 0.005 * -(-num_items // 16)


def test_short_batches_where_batching_gains_nothing() -> None:
    lane = TimedLane(cpu)
    warm = measure(lane, FIRST_S, RULES, lane.clock)
    assert warm.max_images == 4
    for bucket, item_s in ((NATIVE, 0.003), (WIDE, 0.006), (TEXT, 0.001)):
        assert warm.curves[bucket].slope_s == pytest.approx(item_s)
        assert warm.curves[bucket].intercept_s == pytest.approx(0, abs=1e-9)
    assert max(n for _, n in lane.runs) <= 16
    assert lane.now < 0.5


def test_a_slow_image_is_a_batch_of_its_own() -> None:
    lane = TimedLane(lambda bucket, num_items: 100 * cpu(bucket, num_items))
    assert measure(lane, FIRST_S, RULES, lane.clock).max_images == 1


def test_large_batches_where_they_make_images_cheaper() -> None:
    lane = TimedLane(device)
    warm = measure(lane, FIRST_S, RULES, lane.clock)
    assert warm.max_images == 16


def test_a_disturbance_is_not_taken_for_a_gain() -> None:
    lane = TimedLane(cpu)

    def disturbed(bucket: Bucket, num_items: int) -> float:
        is_first_time = lane.runs[bucket, num_items] <= MAX_RUNS
        return cpu(bucket, num_items) * (3 if num_items == 4 and is_first_time else 1)

    lane._seconds = disturbed
    assert measure(lane, FIRST_S, RULES, lane.clock).max_images == 4


def test_a_batch_never_grows_over_what_it_may_hold() -> None:
    lane = TimedLane(device)
    rules = WarmUpRules(max_images=None, most_images=5, max_texts=1, limit_s=10.0)
    assert measure(lane, FIRST_S, rules, lane.clock).max_images == 4
    assert max(n for _, n in lane.runs) == 4


def test_a_size_that_was_set_is_kept_and_measured() -> None:
    lane = TimedLane(cpu)
    rules = WarmUpRules(max_images=7, most_images=64, max_texts=64, limit_s=10.0)
    assert measure(lane, FIRST_S, rules, lane.clock).max_images == 7
    assert lane.runs[NATIVE, 7] == MAX_RUNS


def test_when_time_is_over_what_is_known_has_to_do() -> None:
    lane = TimedLane(lambda bucket, num_items: 2 * num_items)
    rules = WarmUpRules(max_images=None, most_images=64, max_texts=64, limit_s=1.0)
    warm = measure(lane, FIRST_S, rules, lane.clock)
    assert sum(lane.runs.values()) == 1, "none begins after the limit"
    assert warm.curves[NATIVE].seconds(1) == pytest.approx(2)
    assert warm.curves[WIDE].seconds(1) == pytest.approx(8), "twice the size, at most four times"
    assert warm.curves[TEXT].seconds(1) == pytest.approx(3)


def test_each_head_has_a_line_of_its_own() -> None:
    head = {Bucket("depth", (28, 28)): 2.0, Bucket("depth", (28, 56)): 4.0}
    lane = TimedLane(
        lambda bucket, n: n * 0.001 * head[bucket] if bucket in head else cpu(bucket, n)
    )
    rules = WarmUpRules(max_images=6, most_images=64, max_texts=64, limit_s=10.0)
    warm = measure(lane, {**FIRST_S, **head}, rules, lane.clock)
    native, wide = head
    assert warm.max_images == 6
    assert warm.curves[native].slope_s == pytest.approx(0.002)
    assert warm.curves[wide].slope_s == pytest.approx(0.004)
    assert warm.curves[WIDE].slope_s == pytest.approx(0.006), "as before"
    assert lane.runs[native, 3] == MAX_RUNS, "half as many as of embedded images"
    assert max(n for bucket, n in lane.runs if bucket in head) == 3


def test_no_time_at_all_measures_nothing_more() -> None:
    lane = TimedLane(cpu)
    rules = WarmUpRules(max_images=None, most_images=64, max_texts=64, limit_s=0.0)
    warm = measure(lane, FIRST_S, rules, lane.clock)
    assert not lane.runs
    assert {b: c.seconds(1) for b, c in warm.curves.items()} == pytest.approx(FIRST_S)
