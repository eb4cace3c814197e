"""A lane tries itself, mends its runtime a bounded number of times, and is given up in the end.

No threads and no sleeping: the pauses are only counted.
"""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from service.errors import InternalError
from service.lanes.batch_queue import BatchQueue, BatchRules
from service.lanes.latency_model import CostBook, CostCurve
from service.lanes.work import BatchLimits, Bucket, Outputs, WorkItem
from service.lanes.worker import TRIAL_SHARE, Inputs, LaneCare, LaneContext, LaneWorker
from service.monitoring.metrics import Metrics

BUCKET = Bucket("image", (28, 28))
LIMITS = BatchLimits(max_items=4, max_cost=100)
CARE = LaneCare(pauses_s=(0.0, 1.0, 2.0))


class BrittleLane:
    """Fails as often as it is told to: batches, trials and loads apart."""

    probe_bucket = BUCKET

    def __init__(self) -> None:
        self.clock = 0.0
        self.spoilt_batches = 0
        self.spoilt_trials = 0
        self.spoilt_loads = 0
        self.num_loads = 0

    def run(self, bucket: Bucket, inputs: Inputs) -> list[Outputs]:
        payloads = inputs[0]
        self.clock += 0.5 * len(payloads)
        self.spoilt_batches -= 1
        if self.spoilt_batches >= 0:
            raise RuntimeError("batch")
        return [{"y": payload} for payload in payloads]

    def probe(self) -> None:
        self.spoilt_trials -= 1
        if self.spoilt_trials >= 0:
            raise RuntimeError("trial")

    def interrupt(self) -> None:
        raise AssertionError("nobody left")

    def rebuild(self) -> None:
        self.num_loads += 1
        self.spoilt_loads -= 1
        if self.spoilt_loads >= 0:
            raise RuntimeError("load")


@pytest.fixture
def lane() -> BrittleLane:
    return BrittleLane()


@pytest.fixture
def shared(lane: BrittleLane, metrics: Metrics) -> LaneContext:
    rules = BatchRules(limits={"image": LIMITS, "text": LIMITS})

    def clock() -> float:
        return lane.clock

    costs = CostBook(rules.limits, clock)
    costs.begin({BUCKET: CostCurve(0.0, 1.0)}, lambda _: 4)
    queue = BatchQueue(rules, metrics, clock)
    return LaneContext(queue=queue, costs=costs, metrics=metrics, care=CARE, clock=clock)


@pytest.fixture
def pauses() -> list[float]:
    return []


@pytest.fixture
def worker(lane: BrittleLane, shared: LaneContext, pauses: list[float]) -> Any:
    made = LaneWorker(lane, shared, 0, on_death=shared.queue.close)

    def pause(seconds: float) -> bool:
        pauses.append(seconds)
        return False

    made.pause = pause
    return made


def submit(shared: LaneContext, count: int = 1) -> Any:
    items = [WorkItem(bucket=BUCKET, cost=4, payload=np.array([n])) for n in range(count)]
    return shared.queue.put(items)


def test_a_lane_learns_what_its_batches_take(worker: LaneWorker, shared: LaneContext) -> None:
    submit(shared, 2)
    batch = shared.queue.take()
    assert batch
    assert worker.run(batch)
    assert shared.costs.batch_s(BUCKET, 2) < 2.0, "it took half of what was measured"


def test_callers_who_leave_as_their_batch_ends_do_not_interrupt_the_next(
    worker: LaneWorker, shared: LaneContext
) -> None:
    (future,) = submit(shared)
    batch = shared.queue.take()
    assert batch
    assert worker.run(batch)
    future.has_left = True
    worker._end_if_deserted(batch)  # the lane would raise


def test_a_batch_that_fails_is_answered_and_the_lane_is_not_blamed(
    worker: LaneWorker, shared: LaneContext, lane: BrittleLane
) -> None:
    (future,) = submit(shared)
    lane.spoilt_batches = 1
    batch = shared.queue.take()
    assert batch
    assert not worker.run(batch)
    assert isinstance(future.exception(timeout=0), InternalError)
    assert worker.pulse.state.name == "READY"
    assert worker.try_out()
    assert lane.num_loads == 0


def test_a_runtime_is_loaded_anew_until_a_trial_comes_out_well(
    worker: LaneWorker, lane: BrittleLane, pauses: list[float], metrics: Metrics
) -> None:
    lane.spoilt_trials, lane.spoilt_loads = 2, 1
    assert not worker.try_out()
    assert worker.pulse.state.name == "REPAIR"
    assert worker.repair()
    assert worker.pulse.state.name == "READY"
    assert (lane.num_loads, pauses) == (3, [0, 1, 2])
    assert metrics.registry.get_sample_value("tipserve_lane_rebuilds_total") == 1


def test_a_lane_is_given_up_after_the_last_pause(
    worker: LaneWorker,
    lane: BrittleLane,
    shared: LaneContext,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lane.spoilt_batches, lane.spoilt_trials = 1, 100
    (failed,) = submit(shared)
    waiting: list[Any] = []
    monkeypatch.setattr(worker, "pause", lambda _: waiting.extend(submit(shared)))
    worker._work()
    assert worker.pulse.state.name == "DEAD"
    assert lane.num_loads == len(waiting) == 3
    assert isinstance(failed.exception(timeout=0), InternalError)
    assert all(future.exception(timeout=0) for future in waiting), "nobody waits for a dead lane"


def test_a_slow_model_is_tried_less_often(worker: LaneWorker, shared: LaneContext) -> None:
    assert worker.trial_interval_s == math.inf, "not at all, where none is asked for"
    worker._shared = replace(shared, care=replace(CARE, probe_interval_s=10))
    assert worker.trial_interval_s == 1.0 / TRIAL_SHARE
    shared.costs.begin({BUCKET: CostCurve(0.0, 0.001)}, lambda _: 4)
    assert worker.trial_interval_s == 10


def test_a_lane_that_stops_is_not_mended(
    worker: LaneWorker, lane: BrittleLane, shared: LaneContext
) -> None:
    lane.spoilt_trials = 100
    worker.stop()
    assert not worker.repair()
    assert lane.num_loads == 0
