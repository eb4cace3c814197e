"""Batches are formed in scheduling order, within limits, from items that callers still want."""

import math
import threading
import time
from typing import Any

import numpy as np
import pytest

from service.errors import DeadlineExceeded
from service.lanes.batch_queue import PRIORITY_STEP_S as STEP_S
from service.lanes.batch_queue import BatchQueue
from service.lanes.work import BatchLimits, Bucket, Kind, WorkItem
from service.monitoring.metrics import Metrics
from tests.service.conftest import WAIT_S, Clock, sample

SMALL = Bucket("image", (28, 28))
WIDE = Bucket("image", (28, 56))
LIMITS = BatchLimits(max_images=3, max_patches=20, max_tokens=20)


@pytest.fixture
def queue(metrics: Metrics, clock: Clock) -> BatchQueue:
    return BatchQueue(LIMITS, metrics, clock)


def item(bucket: Bucket = SMALL, *, number: int = 0, **fields: Any) -> WorkItem:
    given = {"cost": 4, "deadline": 100.0, **fields}
    return WorkItem(bucket=bucket, payload=np.array([number]), **given)


def numbers(queue: BatchQueue) -> list[int]:
    batch = queue.take()
    return [] if batch is None else [int(one.payload[0]) for one in batch.items]


def test_the_oldest_bucket_goes_first_and_shapes_never_mix(queue: BatchQueue) -> None:
    queue.put([item(WIDE, number=1), item(SMALL, number=2), item(WIDE, number=3)])
    assert [numbers(queue) for _ in range(3)] == [[1, 3], [2], []]


def test_an_expired_item_is_answered_and_not_computed(
    queue: BatchQueue, clock: Clock, metrics: Metrics
) -> None:
    late, other = queue.put([item(deadline=5, number=1), item(number=2)])
    clock.now = 5
    assert numbers(queue) == [2]
    assert isinstance(late.error, DeadlineExceeded)
    assert other.running()
    assert sample(metrics, "abandoned_total", reason="deadline") == 1


def test_an_item_rises_a_priority_level_with_every_step_of_waiting(
    queue: BatchQueue, clock: Clock
) -> None:
    queue.put([item(cost=20, number=1, priority=2), item(cost=20, number=2, priority=3)])
    clock.now = STEP_S - 1
    queue.put([item(cost=20, number=3, priority=1)])
    clock.now = STEP_S + 1
    queue.put([item(cost=20, number=4, priority=1)])
    clock.now = 2 * STEP_S + 1
    queue.put([item(cost=20, number=5, priority=1)])
    assert [numbers(queue) for _ in range(5)] == [[3], [1], [4], [2], [5]]


def test_callers_share_by_cost_and_a_returning_caller_has_no_credit(queue: BatchQueue) -> None:
    queue.put([item(cost=10, number=n, caller="one") for n in range(6)])
    queue.put([item(cost=20, number=10 + n, caller="two") for n in range(3)])
    assert [n for _ in range(7) for n in numbers(queue)] == [0, 10, 1, 2, 11, 3, 4, 12, 5]
    queue.put([item(cost=20, number=n, caller="steady") for n in range(9)])
    queue.put([item(cost=20, number=100, caller="other")])
    assert [numbers(queue) for _ in range(6)] == [[0], [100], [1], [2], [3], [4]]
    queue.put([item(cost=20, number=100 + n, caller="other") for n in (1, 2)])
    assert [numbers(queue) for _ in range(4)] == [[101], [5], [102], [6]]


def test_a_long_queue_of_one_caller_does_not_outrank_another_caller(
    queue: BatchQueue, clock: Clock
) -> None:
    queue.put([item(cost=20, number=n, caller="flood") for n in range(9)])
    assert numbers(queue) == [0]
    clock.now = 3 * STEP_S
    queue.put([item(cost=20, number=100, caller="other")])
    queue.put([item(cost=20, number=200 + n, priority=1, caller="urgent") for n in range(9)])
    # What has waited counts like the urgent items, not more.
    assert [numbers(queue) for _ in range(4)] == [[200], [1], [201], [2]]
    clock.now += STEP_S
    assert numbers(queue) == [100]


def test_idle_lanes_split_waiting_items_evenly(metrics: Metrics) -> None:
    limits = BatchLimits(max_images=8, max_patches=80, max_tokens=80)
    queue = BatchQueue(limits, metrics, time.monotonic, split_evenly=True)
    sizes: list[int] = []

    def take() -> None:
        batch = queue.take(WAIT_S)
        sizes.append(len(batch.items) if batch else 0)

    lanes = [threading.Thread(target=take) for _ in range(3)]
    for lane in lanes:
        lane.start()
    while queue._num_idle < len(lanes):
        time.sleep(0.001)
    queue.put([item(deadline=math.inf) for _ in range(7)])
    for lane in lanes:
        lane.join(WAIT_S)
    assert sorted(sizes) == [2, 2, 3]
    queue.close()


@pytest.mark.parametrize(
    ("kind", "most"),
    [("image", 12), ("depth", 6), ("image+depth", 6), ("image+depth+normals", 4), ("text", 64)],
)
def test_batches_for_dense_heads_hold_fewer_images(kind: Kind, most: int) -> None:
    for limits in (
        BatchLimits(max_images=12, max_patches=1000, max_tokens=1000),
        BatchLimits(max_images=1000, max_patches=48, max_tokens=256),
    ):
        assert [limits.fits(kind, n, 4 * n) for n in (1, most, most + 1)] == [True, True, False]
