"""Lanes as threads: batches fail alone, and stopping resolves every item."""

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from model.runtime.base import Interrupted
from service.errors import InternalError, Unavailable
from service.lanes.batch_queue import BatchRules
from service.lanes.batching import Batcher
from service.lanes.lane import Inputs
from service.lanes.latency_model import LatencyCurve
from service.lanes.work import BatchLimits, Bucket, Outputs, WorkItem
from service.lanes.worker import HealthLimits
from service.monitoring.metrics import Metrics

BUCKET = Bucket("image", (28, 28))
WAIT_S = 20.0
LIMITS = BatchLimits(max_items=4, max_cost=100)
RULES = BatchRules(limits={"image": LIMITS, "text": LIMITS})


class Runner:
    """Doubles its input; waits for a gate, and fails on negative numbers."""

    probe_bucket = BUCKET

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.entered = threading.Semaphore(0)
        self.batches: list[list[float]] = []
        self.is_interrupted = False
        self.num_interrupted = 0

    def run(self, bucket: Bucket, inputs: Inputs) -> list[Outputs]:
        payloads = inputs[0]
        self.batches.append([float(p[0]) for p in payloads])
        self.entered.release()
        assert self.gate.wait(WAIT_S)
        if self.is_interrupted:
            self.is_interrupted = False
            raise Interrupted
        if any(p[0] < 0 for p in payloads):
            raise ValueError("negative")
        return [{"y": 2 * p} for p in payloads]

    def probe(self) -> None:
        """Succeeds."""

    def interrupt(self) -> None:
        self.num_interrupted += 1
        self.is_interrupted = True
        self.gate.set()

    def reload(self) -> None:
        raise AssertionError("not broken")


@pytest.fixture
def runner() -> Runner:
    return Runner()


@pytest.fixture
def batcher(runner: Runner, metrics: Metrics) -> Any:
    made = Batcher([runner], rules=RULES, metrics=metrics)
    made.start()
    yield made
    runner.gate.set()
    assert made.stop(WAIT_S)


def items(*values: float) -> list[WorkItem]:
    return [WorkItem(bucket=BUCKET, cost=1, payload=np.array([v], np.float32)) for v in values]


def test_an_idle_lane_takes_all_waiting_items(
    batcher: Batcher, runner: Runner, metrics: Metrics
) -> None:
    first = batcher.queue.put(items(1))
    assert runner.entered.acquire(timeout=WAIT_S)
    others = batcher.queue.put(items(2, 3)) + batcher.queue.put(items(4))
    runner.gate.set()
    results = [f.result(WAIT_S).outputs["y"][0] for f in first + others]
    assert results == [2, 4, 6, 8]
    assert runner.batches == [[1], [2, 3, 4]]
    assert metrics.registry.get_sample_value("tipserve_batch_images_sum") == 4
    assert metrics.registry.get_sample_value("tipserve_batch_patches_count") == 2


def test_other_items_of_a_batch_with_a_cancelled_one_are_answered(
    batcher: Batcher, runner: Runner
) -> None:
    blocker = batcher.queue.put(items(0))
    assert runner.entered.acquire(timeout=WAIT_S)
    one, two, three = batcher.queue.put(items(1, 2, 3))
    assert two.cancel()
    runner.gate.set()
    assert [f.result(WAIT_S).outputs["y"][0] for f in (*blocker, one, three)] == [0, 2, 6]
    assert runner.batches[1] == [1, 3]


def test_a_batch_is_interrupted_once_its_last_caller_left(
    batcher: Batcher, runner: Runner, metrics: Metrics
) -> None:
    one, two = batcher.queue.put(items(1, 2))
    assert runner.entered.acquire(timeout=WAIT_S)
    assert not one.cancel()
    assert runner.num_interrupted == 0
    assert not two.cancel()
    assert not two.cancel()
    assert runner.num_interrupted == 1
    (next_one,) = batcher.queue.put(items(3))
    assert next_one.result(WAIT_S).outputs["y"][0] == 6
    assert all(isinstance(f.exception(WAIT_S), InternalError) for f in (one, two))
    abandoned = {"reason": "interrupted"}
    assert metrics.registry.get_sample_value("tipserve_abandoned_total", abandoned) == 2


def test_texts_are_computed_to_the_end_for_the_cache(batcher: Batcher, runner: Runner) -> None:
    row = WorkItem(bucket=Bucket("text", (8,)), cost=1, payload=np.array([1], np.float32))
    (text,) = batcher.queue.put([row])
    assert runner.entered.acquire(timeout=WAIT_S)
    assert not text.cancel()
    runner.gate.set()
    assert text.result(WAIT_S).outputs["y"][0] == 2
    assert runner.num_interrupted == 0


def test_a_failing_batch_fails_alone_and_names_its_cause(batcher: Batcher, runner: Runner) -> None:
    runner.gate.set()
    (bad,) = batcher.queue.put(items(-1))
    error = bad.exception(WAIT_S)
    assert isinstance(error, InternalError)
    assert isinstance(error.__cause__, ValueError)
    assert "negative" not in error.message
    (good,) = batcher.queue.put(items(5))
    assert good.result(WAIT_S).outputs["y"][0] == 10


def test_stopping_lets_the_running_batch_finish(batcher: Batcher, runner: Runner) -> None:
    (running,) = batcher.queue.put(items(1))
    assert runner.entered.acquire(timeout=WAIT_S)
    (waiting,) = batcher.queue.put(items(2))
    stopper = threading.Thread(target=batcher.stop, args=(WAIT_S,))
    stopper.start()
    assert isinstance(waiting.exception(WAIT_S), Unavailable)
    runner.gate.set()
    assert running.result(WAIT_S).outputs["y"][0] == 2
    stopper.join(WAIT_S)
    with pytest.raises(Unavailable):
        batcher.queue.put(items(3))


def test_stopping_answers_the_callers_of_a_hung_lane(batcher: Batcher, runner: Runner) -> None:
    (running,) = batcher.queue.put(items(1))
    assert runner.entered.acquire(timeout=WAIT_S)
    assert not batcher.stop(0)
    assert isinstance(running.exception(0), Unavailable)


class BrokenRunner(Runner):
    """Always fails, also after a reload."""

    def run(self, bucket: Bucket, inputs: Inputs) -> list[Outputs]:
        self.entered.release()
        raise RuntimeError("the device is gone")

    def probe(self) -> None:
        raise RuntimeError("the device is gone")

    def reload(self) -> None:
        """Succeeds, and changes nothing."""


def test_other_lanes_keep_serving_when_one_is_dead(runner: Runner, metrics: Metrics) -> None:
    runner.gate.set()
    broken = BrokenRunner()
    batcher = Batcher(
        [broken, runner], rules=RULES, metrics=metrics, limits=HealthLimits(reload_pauses_s=(0,))
    )
    batcher.start()
    failed = 0
    while batcher.lane_states()["dead"] == 0:
        failed += isinstance(batcher.queue.put(items(1))[0].exception(WAIT_S), InternalError)
    answers = [batcher.queue.put(items(n))[0].result(WAIT_S).outputs["y"][0] for n in range(20)]
    assert answers == [2 * n for n in range(20)]
    assert failed == 1, "one batch failed; the lane took no other during its repair"
    assert batcher.is_ready
    assert batcher.stop(WAIT_S)


def test_when_the_last_lane_is_dead_all_items_fail(metrics: Metrics) -> None:
    batcher = Batcher(
        [BrokenRunner()], rules=RULES, metrics=metrics, limits=HealthLimits(reload_pauses_s=(0,))
    )
    batcher.start()
    futures = batcher.queue.put(items(*range(9)))
    errors = [future.exception(WAIT_S) for future in futures]
    assert {type(error) for error in errors} == {InternalError, Unavailable}
    with pytest.raises(Unavailable, match="device"):
        batcher.queue.put(items(1))
    assert not batcher.is_ready
    assert batcher.stop(WAIT_S)


def test_an_idle_lane_probes_its_runtime(metrics: Metrics) -> None:
    broken = BrokenRunner()
    limits = HealthLimits(probe_interval_s=0.01, dead_limit_s=0, reload_pauses_s=())
    batcher = Batcher([broken], rules=RULES, metrics=metrics, limits=limits)
    assert batcher.is_live
    batcher.start()
    batcher.workers[0].thread.join(WAIT_S)
    assert (batcher.is_ready, batcher.is_live) == (False, False)
    assert broken.entered.acquire(blocking=False) is False, "found without a batch"
    assert batcher.stop(WAIT_S)


def test_work_of_one_kind_counts_by_the_latency_of_that_kind(
    runner: Runner, metrics: Metrics
) -> None:
    rules = BatchRules(limits={kind: RULES.limits["image"] for kind in ("image", "depth")})
    batcher = Batcher([runner], rules=rules, metrics=metrics, clock=lambda: 0.0)
    deep = Bucket("depth", BUCKET.shape)
    batcher.latency.set_measured(
        {BUCKET: LatencyCurve(0, 2.0), deep: LatencyCurve(0, 5.0)}, lambda _: 1
    )
    assert batcher.done_in_s(1, priority=2) == 2.0
    assert batcher.done_in_s(1, priority=2, kind="depth") == 5.0


def test_waiting_items_count_over_all_lanes(runner: Runner, metrics: Metrics) -> None:
    batcher = Batcher([runner, Runner()], rules=RULES, metrics=metrics, clock=lambda: 0.0)
    batcher.latency.set_measured({BUCKET: LatencyCurve(0.0, 2.0)}, lambda _: 1)
    assert batcher.done_in_s(1, priority=2) == 2.0, "idle lanes"
    batcher.queue.put([replace(item, priority=2) for item in items(*range(6))])
    assert batcher.done_in_s(1, priority=1) == 2.0
    assert batcher.done_in_s(1, priority=2) == 8.0
    assert batcher.done_in_s(4, priority=3) == 10.0
    batcher.workers[0].health.run_started(7.0)
    assert batcher.done_in_s(1, priority=2) == (12 + 7) / 2 + 2
    assert batcher.done_in_s(1, priority=1) == 2.0, "the other lane is idle"
    batcher.workers[1].health.mark_dead()
    assert batcher.done_in_s(1, priority=1) == 7 + 2
    batcher.stop(0)
