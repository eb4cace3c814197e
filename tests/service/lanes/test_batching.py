"""Lanes as threads: batches stand alone, and stopping leaves nobody waiting."""

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from model.runtime.base import Interrupted
from service.errors import InternalError, Unavailable
from service.lanes.batch_queue import BatchRules
from service.lanes.batching import Batcher
from service.lanes.latency_model import CostCurve
from service.lanes.work import BatchLimits, Bucket, Outputs, WorkItem
from service.lanes.worker import Inputs, LaneCare
from service.monitoring.metrics import Metrics

BUCKET = Bucket("image", (28, 28))
WAIT_S = 20.0
LIMITS = BatchLimits(max_items=4, max_cost=100)
RULES = BatchRules(limits={"image": LIMITS, "text": LIMITS})


class Runner:
    """Doubles its input; held by a gate, and breaks at negative numbers."""

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
        """It is never the runtime's fault."""

    def interrupt(self) -> None:
        self.num_interrupted += 1
        self.is_interrupted = True
        self.gate.set()

    def rebuild(self) -> None:
        raise AssertionError("it was not broken")


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


def test_a_free_lane_takes_what_waits(batcher: Batcher, runner: Runner, metrics: Metrics) -> None:
    first = batcher.submit(items(1))
    assert runner.entered.acquire(timeout=WAIT_S)
    others = batcher.submit(items(2, 3)) + batcher.submit(items(4))
    runner.gate.set()
    results = [f.result(WAIT_S).outputs["y"][0] for f in first + others]
    assert results == [2, 4, 6, 8]
    assert runner.batches == [[1], [2, 3, 4]]
    assert metrics.registry.get_sample_value("tipserve_batch_images_sum") == 4
    assert metrics.registry.get_sample_value("tipserve_batch_patches_count") == 2


def test_neighbours_of_a_cancelled_item_are_answered(batcher: Batcher, runner: Runner) -> None:
    blocker = batcher.submit(items(0))
    assert runner.entered.acquire(timeout=WAIT_S)
    one, two, three = batcher.submit(items(1, 2, 3))
    assert two.cancel()
    runner.gate.set()
    assert [f.result(WAIT_S).outputs["y"][0] for f in (*blocker, one, three)] == [0, 2, 6]
    assert runner.batches[1] == [1, 3]


def test_a_batch_is_interrupted_once_its_last_caller_has_left(
    batcher: Batcher, runner: Runner, metrics: Metrics
) -> None:
    one, two = batcher.submit(items(1, 2))
    assert runner.entered.acquire(timeout=WAIT_S)
    assert not one.cancel()
    assert runner.num_interrupted == 0
    assert not two.cancel()
    assert not two.cancel()
    assert runner.num_interrupted == 1
    (next_one,) = batcher.submit(items(3))
    assert next_one.result(WAIT_S).outputs["y"][0] == 6
    assert all(isinstance(f.exception(WAIT_S), InternalError) for f in (one, two))
    abandoned = {"reason": "interrupted"}
    assert metrics.registry.get_sample_value("tipserve_abandoned_total", abandoned) == 2


def test_texts_are_computed_to_the_end_for_the_cache(batcher: Batcher, runner: Runner) -> None:
    row = WorkItem(bucket=Bucket("text", (8,)), cost=1, payload=np.array([1], np.float32))
    (text,) = batcher.submit([row])
    assert runner.entered.acquire(timeout=WAIT_S)
    assert not text.cancel()
    runner.gate.set()
    assert text.result(WAIT_S).outputs["y"][0] == 2
    assert runner.num_interrupted == 0


def test_a_failing_batch_fails_alone_and_names_its_cause(batcher: Batcher, runner: Runner) -> None:
    runner.gate.set()
    (bad,) = batcher.submit(items(-1))
    error = bad.exception(WAIT_S)
    assert isinstance(error, InternalError)
    assert isinstance(error.__cause__, ValueError)
    assert "negative" not in error.message
    (good,) = batcher.submit(items(5))
    assert good.result(WAIT_S).outputs["y"][0] == 10


def test_stopping_lets_the_running_batch_finish(batcher: Batcher, runner: Runner) -> None:
    (running,) = batcher.submit(items(1))
    assert runner.entered.acquire(timeout=WAIT_S)
    (waiting,) = batcher.submit(items(2))
    stopper = threading.Thread(target=batcher.stop, args=(WAIT_S,))
    stopper.start()
    assert isinstance(waiting.exception(WAIT_S), Unavailable)
    runner.gate.set()
    assert running.result(WAIT_S).outputs["y"][0] == 2
    stopper.join(WAIT_S)
    with pytest.raises(Unavailable):
        batcher.submit(items(3))


def test_a_lane_that_hangs_does_not_keep_its_callers(batcher: Batcher, runner: Runner) -> None:
    (running,) = batcher.submit(items(1))
    assert runner.entered.acquire(timeout=WAIT_S)
    assert not batcher.stop(0)
    assert isinstance(running.exception(0), Unavailable)


class BrokenRunner(Runner):
    """Computes nothing, before and after it is loaded anew."""

    def run(self, bucket: Bucket, inputs: Inputs) -> list[Outputs]:
        self.entered.release()
        raise RuntimeError("the device is gone")

    def probe(self) -> None:
        raise RuntimeError("the device is gone")

    def rebuild(self) -> None:
        """It loads, and computes no better."""


def test_the_other_lanes_go_on_when_one_is_lost(runner: Runner, metrics: Metrics) -> None:
    runner.gate.set()
    broken = BrokenRunner()
    batcher = Batcher([broken, runner], rules=RULES, metrics=metrics, care=LaneCare(pauses_s=(0,)))
    batcher.start()
    failed = 0
    while batcher.lane_states()["dead"] == 0:
        failed += isinstance(batcher.submit(items(1))[0].exception(WAIT_S), InternalError)
    answers = [batcher.submit(items(n))[0].result(WAIT_S).outputs["y"][0] for n in range(20)]
    assert answers == [2 * n for n in range(20)]
    assert failed == 1, "one batch told that the lane was broken; the repair took no other"
    assert batcher.is_ready
    assert batcher.stop(WAIT_S)


def test_when_the_last_lane_is_lost_everyone_is_told(metrics: Metrics) -> None:
    batcher = Batcher([BrokenRunner()], rules=RULES, metrics=metrics, care=LaneCare(pauses_s=(0,)))
    batcher.start()
    futures = batcher.submit(items(*range(9)))
    errors = [future.exception(WAIT_S) for future in futures]
    assert {type(error) for error in errors} == {InternalError, Unavailable}
    with pytest.raises(Unavailable, match="device"):
        batcher.submit(items(1))
    assert not batcher.is_ready
    assert batcher.stop(WAIT_S)


def test_an_idle_lane_tries_itself(metrics: Metrics) -> None:
    broken = BrokenRunner()
    care = LaneCare(probe_interval_s=0.01, dead_limit_s=0, pauses_s=())
    batcher = Batcher([broken], rules=RULES, metrics=metrics, care=care)
    assert batcher.is_live
    batcher.start()
    batcher.workers[0].thread.join(WAIT_S)
    assert (batcher.is_ready, batcher.is_live) == (False, False)
    assert broken.entered.acquire(blocking=False) is False, "no batch was needed to find out"
    assert batcher.stop(WAIT_S)


def test_work_of_one_kind_is_told_by_that_kinds_costs(runner: Runner, metrics: Metrics) -> None:
    rules = BatchRules(limits={kind: RULES.limits["image"] for kind in ("image", "depth")})
    batcher = Batcher([runner], rules=rules, metrics=metrics, clock=lambda: 0.0)
    deep = Bucket("depth", BUCKET.shape)
    batcher.costs.begin({BUCKET: CostCurve(0, 2.0), deep: CostCurve(0, 5.0)}, lambda _: 1)
    assert batcher.done_in_s(1, priority=2) == 2.0
    assert batcher.done_in_s(1, priority=2, kind="depth") == 5.0


def test_what_is_ahead_is_counted_over_all_lanes(runner: Runner, metrics: Metrics) -> None:
    batcher = Batcher([runner, Runner()], rules=RULES, metrics=metrics, clock=lambda: 0.0)
    batcher.costs.begin({BUCKET: CostCurve(0.0, 2.0)}, lambda _: 1)
    assert batcher.done_in_s(1, priority=2) == 2.0, "free lanes"
    batcher.submit([replace(item, priority=2) for item in items(*range(6))])
    assert batcher.done_in_s(1, priority=1) == 2.0
    assert batcher.done_in_s(1, priority=2) == 8.0
    assert batcher.done_in_s(4, priority=3) == 10.0
    batcher.pulses[0].begin(7.0)
    assert batcher.done_in_s(1, priority=2) == (12 + 7) / 2 + 2
    assert batcher.done_in_s(1, priority=1) == 2.0, "the other lane is free"
    batcher.pulses[1].die()
    assert batcher.done_in_s(1, priority=1) == 7 + 2
    batcher.stop(0)
