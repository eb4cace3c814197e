"""How batches are formed, and that every accepted item is answered exactly once, its own answer.

Driven step by step with a clock that the test moves: no threads, no sleeps.
"""

import math
import threading
import time
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from service.call import PRIORITIES
from service.errors import DeadlineExceeded, InternalError, ServiceError, Unavailable
from service.lanes.batch_queue import BatchQueue, BatchRules
from service.lanes.batching import Batcher
from service.lanes.work import BatchLimits, Bucket, Completed, Outputs, WorkItem
from service.lanes.worker import Inputs, run_batch
from service.monitoring.metrics import Metrics

SMALL = Bucket("image", (28, 28))
WIDE = Bucket("image", (28, 56))
TEXT = Bucket("text", (8,))
LIMITS = BatchLimits(max_items=3, max_cost=20)
STEP_S = 5.0
WAIT_S = 20.0
RULES = BatchRules(limits={"image": LIMITS, "text": LIMITS}, priority_step_s=STEP_S)


class Clock:
    """Time as the test has it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(metrics: Metrics, clock: Clock) -> BatchQueue:
    return BatchQueue(RULES, metrics, clock)


def item(bucket: Bucket = SMALL, *, number: int = 0, **fields: Any) -> WorkItem:
    given = {"cost": 4, "deadline": 100.0, **fields}
    return WorkItem(bucket=bucket, payload=np.array([number]), **given)


def numbers(queue: BatchQueue) -> list[int]:
    batch = queue.take()
    return [] if batch is None else [int(e.item.payload[0]) for e in batch.entries]


def abandoned(metrics: Metrics, reason: str) -> float | None:
    return metrics.registry.get_sample_value("tipserve_abandoned_total", {"reason": reason})


def test_the_oldest_bucket_goes_first_and_shapes_never_mix(queue: BatchQueue) -> None:
    queue.put([item(WIDE, number=1), item(SMALL, number=2), item(WIDE, number=3)])
    assert [numbers(queue) for _ in range(3)] == [[1, 3], [2], []]


def test_a_batch_ends_at_the_item_cap_and_at_the_budget(queue: BatchQueue) -> None:
    queue.put([item(cost=4, number=n) for n in range(4)])
    queue.put([item(WIDE, cost=12, number=n) for n in range(10, 12)])
    assert [numbers(queue) for _ in range(4)] == [[0, 1, 2], [3], [10], [11]]


def test_an_item_above_the_budget_still_goes_alone(queue: BatchQueue) -> None:
    queue.put([item(cost=50, number=1), item(cost=1, number=2)])
    assert [numbers(queue), numbers(queue)] == [[1], [2]]


def test_a_cancelled_item_leaves_the_queue_at_once(queue: BatchQueue, metrics: Metrics) -> None:
    first, second = queue.put([item(number=1), item(number=2)])
    assert first.cancel()
    assert queue.depths() == {SMALL: 1}
    assert abandoned(metrics, "cancelled") == 1
    assert numbers(queue) == [2]
    assert not second.cancel(), "a lane has it"
    assert queue.depths() == {}


def test_an_expired_item_is_answered_and_not_computed(
    queue: BatchQueue, clock: Clock, metrics: Metrics
) -> None:
    late, other = queue.put([item(deadline=5, number=1), item(number=2)])
    clock.now = 5
    assert numbers(queue) == [2]
    assert isinstance(late.exception(timeout=0), DeadlineExceeded)
    assert not other.done()
    assert abandoned(metrics, "deadline") == 1


def test_the_urgent_go_first_and_within_a_level_the_oldest(queue: BatchQueue) -> None:
    queue.put([item(number=n, priority=p) for n, p in enumerate([3, 2, 1, 2, 1])])
    assert [numbers(queue), numbers(queue)] == [[2, 4, 1], [3, 0]]


def test_the_bucket_of_the_most_urgent_goes_first(queue: BatchQueue) -> None:
    queue.put([item(WIDE, number=1), item(SMALL, number=2, priority=1)])
    assert [numbers(queue), numbers(queue)] == [[2], [1]]


def test_what_has_waited_a_step_is_overtaken_no_more(queue: BatchQueue, clock: Clock) -> None:
    queue.put([item(cost=20, number=1, priority=2), item(cost=20, number=2, priority=3)])
    clock.now = STEP_S - 1
    queue.put([item(cost=20, number=3, priority=1)])
    clock.now = STEP_S + 1
    queue.put([item(cost=20, number=4, priority=1)])
    clock.now = 2 * STEP_S + 1
    queue.put([item(cost=20, number=5, priority=1)])
    assert [numbers(queue) for _ in range(5)] == [[3], [1], [4], [2], [5]]


def test_how_much_is_ahead_depends_on_the_level(queue: BatchQueue) -> None:
    queue.put([item(priority=1), item(priority=2), item(WIDE, priority=3)])
    assert queue.ahead_of(1) == {SMALL: 1, WIDE: 0}
    assert queue.ahead_of(3) == {SMALL: 2, WIDE: 1}


def test_a_flood_waits_behind_itself(queue: BatchQueue) -> None:
    queue.put([item(cost=20, number=n, flow="flood") for n in range(20)])
    assert [numbers(queue) for _ in range(3)] == [[0], [1], [2]]
    queue.put([item(cost=20, number=100, flow="other")])
    assert queue.ahead_of(2, "flood") == {SMALL: 18}
    assert queue.ahead_of(2, "other") == {SMALL: 2}
    # The other comes level with what the flood has had, not with a credit of its own.
    assert [numbers(queue) for _ in range(4)] == [[100], [3], [4], [5]]


def test_two_floods_take_turns_by_cost(queue: BatchQueue) -> None:
    queue.put([item(cost=10, number=n, flow="one") for n in range(6)])
    queue.put([item(cost=20, number=10 + n, flow="two") for n in range(3)])
    served = [n for _ in range(7) for n in numbers(queue)]
    assert served == [0, 10, 1, 2, 11, 3, 4, 12, 5]


def test_who_comes_back_after_a_pause_has_not_saved_up_turns(queue: BatchQueue) -> None:
    queue.put([item(cost=20, number=n, flow="steady") for n in range(9)])
    queue.put([item(cost=20, number=100, flow="other")])
    assert [numbers(queue) for _ in range(6)] == [[0], [100], [1], [2], [3], [4]]
    queue.put([item(cost=20, number=100 + n, flow="other") for n in (1, 2)])
    assert [numbers(queue) for _ in range(4)] == [[101], [5], [102], [6]]


def test_an_urgent_item_goes_before_another_flows_turn(queue: BatchQueue) -> None:
    queue.put([item(cost=20, number=n, priority=2, flow="one") for n in range(3)])
    assert numbers(queue) == [0]
    queue.put([item(cost=20, number=10, priority=2, flow="two")])
    queue.put([item(cost=20, number=11, priority=1, flow="one")])
    assert [numbers(queue) for _ in range(3)] == [[11], [10], [1]]


def test_a_look_ahead_sees_the_turns_of_all_flows(queue: BatchQueue) -> None:
    queue.put([item(number=n, flow="one") for n in range(4)])
    queue.put([item(number=10 + n, flow="two") for n in range(4)])
    for _ in range(3):
        seen = queue.wait_and_peek([])
        assert seen is not None
        assert [int(entry.item.payload[0]) for entry in seen] == numbers(queue)


def test_a_linger_waits_for_a_full_batch_or_its_time(metrics: Metrics, clock: Clock) -> None:
    queue = BatchQueue(replace(RULES, max_wait_s=2), metrics, clock)
    queue.put([item(number=1), item(number=2)])
    assert numbers(queue) == []
    queue.put([item(WIDE, number=n) for n in (3, 4, 5)])
    assert numbers(queue) == [3, 4, 5], "this one is full"
    clock.now = 2
    assert numbers(queue) == [1, 2], "their time is up"


def test_lanes_that_are_free_together_share_what_waits(metrics: Metrics) -> None:
    rules = BatchRules(limits={"image": BatchLimits(max_items=8, max_cost=80)}, share_evenly=True)
    queue = BatchQueue(rules, metrics, time.monotonic)
    sizes: list[int] = []

    def take() -> None:
        batch = queue.wait_and_take(WAIT_S)
        sizes.append(len(batch.entries) if batch else 0)

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


def test_waiting_ends_at_its_time(metrics: Metrics) -> None:
    assert BatchQueue(RULES, metrics, time.monotonic).wait_and_take(0.01) is None


def test_the_age_of_the_oldest_is_known(queue: BatchQueue, clock: Clock) -> None:
    assert queue.oldest_s() == 0
    queue.put([item()])
    clock.now = 3
    queue.put([item(WIDE)])
    assert queue.oldest_s() == 3


def test_closing_answers_all_and_takes_no_more(queue: BatchQueue) -> None:
    waiting = queue.put([item(), item(TEXT)])
    queue.close()
    assert all(isinstance(f.exception(timeout=0), Unavailable) for f in waiting)
    assert queue.wait_and_take() is None
    with pytest.raises(Unavailable):
        queue.put([item()])


class BatchingMachine(RuleBasedStateMachine):
    """Submits, cancels, lets time pass, runs batches well and badly, and stops, in any order."""

    @initialize(linger_s=st.sampled_from([0, 2]))
    def start(self, linger_s: int) -> None:
        self.clock = Clock()
        self.metrics = Metrics()
        rules = replace(RULES, max_wait_s=linger_s)
        self.batcher = Batcher([], rules=rules, metrics=self.metrics, clock=self.clock)
        self.ranks: dict[int, tuple[float, int]] = {}
        self.flows: dict[int, str] = {}
        self.accepted: list[Future[Completed]] = []
        self.answers: list[int] = []
        self.cancelled: set[int] = set()
        self.computed: set[int] = set()
        self.is_stopped = False

    @rule(
        buckets=st.lists(st.sampled_from([SMALL, WIDE, TEXT]), min_size=1, max_size=6),
        patience_s=st.integers(0, 5),
        cost=st.integers(1, 25),
        priority=st.sampled_from(PRIORITIES),
        flow=st.sampled_from(["rest", "grpc"]),
    )
    def submit(
        self, buckets: list[Bucket], patience_s: int, cost: int, priority: int, flow: str
    ) -> None:
        first = len(self.accepted)
        fields: dict[str, Any] = {
            "cost": cost,
            "deadline": self.clock.now + patience_s,
            "priority": priority,
        }
        fields["flow"] = flow
        items = [item(b, number=first + i, **fields) for i, b in enumerate(buckets)]
        try:
            futures = self.batcher.submit(items)
        except Unavailable:
            assert self.is_stopped
            return
        assert not self.is_stopped
        for index in range(first, first + len(futures)):
            self.flows[index] = flow
            self.ranks[index] = (self.clock.now + (priority - 1) * STEP_S, index)
        for future in futures:
            future.add_done_callback(self.count(len(self.accepted)))
            self.accepted.append(future)

    def count(self, index: int) -> Any:
        return lambda _: self.answers.append(index)

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if self.accepted:
            index = data.draw(st.integers(0, len(self.accepted) - 1))
            if self.accepted[index].cancel():
                self.cancelled.add(index)

    @rule(seconds=st.integers(1, 3))
    def wait(self, seconds: int) -> None:
        self.clock.now += seconds

    @rule(outcome=st.sampled_from(["good", "good", "raises", "short", "long"]))
    def run_a_batch(self, outcome: Literal["good", "raises", "short", "long"]) -> None:
        batch = self.batcher.queue.take()
        if batch is None:
            return
        sizes = [entry.item.cost for entry in batch.entries]
        assert len(sizes) <= LIMITS.max_items
        assert len(sizes) == 1 or sum(sizes) <= LIMITS.max_cost
        assert {entry.item.bucket for entry in batch.entries} == {batch.bucket}
        assert all(entry.item.deadline > self.clock.now for entry in batch.entries)

        def runner(bucket: Bucket, inputs: Inputs) -> list[Outputs]:
            indices = [int(p[0]) for p in inputs[0]]
            for flow in set(self.flows.values()):
                own = [i for i in indices if self.flows[i] == flow]
                assert own == sorted(own, key=lambda i: self.ranks[i]), "not in turn"
            assert not self.cancelled & set(indices), "computed for nobody"
            assert not self.computed & set(indices), "computed twice"
            self.computed |= set(indices)
            if outcome == "raises":
                raise RuntimeError("broken")
            results: list[Outputs] = [{"y": np.array([i * 10.0], np.float32)} for i in indices]
            return {"good": results, "short": results[1:], "long": results * 2}[outcome]

        run_batch(batch, runner, self.metrics, self.clock)
        for entry in batch.entries:
            assert entry.future.done()
            if outcome != "good":
                assert isinstance(entry.future.exception(timeout=0), InternalError)

    @rule()
    def stop(self) -> None:
        self.is_stopped = True
        self.batcher.stop(0)

    @invariant()
    def every_answer_is_the_callers_own(self) -> None:
        for index, future in enumerate(self.accepted):
            if future.done() and not future.cancelled() and future.exception(timeout=0) is None:
                assert future.result(timeout=0).outputs["y"][0] == index * 10
        assert len(self.answers) == len(set(self.answers)), "answered twice"

    def teardown(self) -> None:
        self.batcher.stop(0)
        for index, future in enumerate(self.accepted):
            assert future.done(), "left without an answer"
            assert future.cancelled() == (index in self.cancelled)
            if not future.cancelled():
                assert isinstance(future.exception(timeout=0), ServiceError | None)
        assert sorted(self.answers) == list(range(len(self.accepted)))


BatchingMachine.TestCase.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None
)
TestBatching = BatchingMachine.TestCase
