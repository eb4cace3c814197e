"""A worker tracks its lane's health, probes and reloads the runtime a bounded number of times."""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from model.graphs import PatchOutput
from service.errors import Unavailable
from service.lanes.batch_queue import BatchQueue, BatchRules
from service.lanes.lane import Inputs
from service.lanes.latency_model import LatencyCurve, LatencyModel
from service.lanes.work import Batch, BatchLimits, Bucket, Outputs, WorkItem
from service.lanes.worker import (
    HANG_FACTOR,
    PROBE_SHARE,
    HealthLimits,
    LaneContext,
    LaneHealth,
    LaneState,
    LaneWorker,
    unhealthy_since,
)
from service.monitoring.metrics import Metrics
from tests.service.conftest import Clock

BUCKET = Bucket("image", (28, 28))
LIMITS = BatchLimits(max_items=4, max_cost=100)
HEALTH_LIMITS = HealthLimits(reload_pauses_s=(0.0, 1.0, 2.0))


class BrittleLane:
    """Fails the next given number of batches, probes and loads."""

    probe_bucket = BUCKET

    def __init__(self) -> None:
        self.clock = 0.0
        self.failing_batches = 0
        self.failing_probes = 0
        self.failing_loads = 0
        self.num_loads = 0
        self.most_items = 64
        self.patch_outputs: set[PatchOutput] = set()

    def run(
        self,
        bucket: Bucket,
        inputs: Inputs,
        patch_outputs: Collection[PatchOutput],
    ) -> list[Outputs]:
        payloads = inputs[0]
        if len(payloads) > self.most_items:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        self.clock += 0.5 * len(payloads)
        self.patch_outputs = set(patch_outputs)
        self.failing_batches -= 1
        if self.failing_batches >= 0:
            raise RuntimeError("batch")
        return [{"y": payload} for payload in payloads]

    def probe(self) -> None:
        self.failing_probes -= 1
        if self.failing_probes >= 0:
            raise RuntimeError("probe")

    def interrupt(self) -> None:
        raise AssertionError("no caller left")

    def reload(self) -> None:
        self.num_loads += 1
        self.failing_loads -= 1
        if self.failing_loads >= 0:
            raise RuntimeError("load")


@pytest.fixture
def lane() -> BrittleLane:
    return BrittleLane()


@pytest.fixture
def shared(lane: BrittleLane, metrics: Metrics) -> LaneContext:
    rules = BatchRules(limits={"image": LIMITS, "text": LIMITS})

    def clock() -> float:
        return lane.clock

    latency = LatencyModel(rules.limits, clock)
    latency.set_measured({BUCKET: LatencyCurve(0.0, 1.0)}, lambda _: 4)
    queue = BatchQueue(rules, metrics, clock)
    return LaneContext(
        queue=queue, latency=latency, metrics=metrics, limits=HEALTH_LIMITS, clock=clock
    )


@pytest.fixture
def pauses() -> list[float]:
    return []


@pytest.fixture
def worker(lane: BrittleLane, shared: LaneContext, pauses: list[float]) -> Any:
    made = LaneWorker(lane, shared, 0, on_dead=shared.queue.close)

    def pause(seconds: float) -> bool:
        pauses.append(seconds)
        return False

    made.pause = pause
    return made


def submit(shared: LaneContext, count: int = 1) -> Any:
    items = [WorkItem(bucket=BUCKET, cost=4, payload=np.array([n])) for n in range(count)]
    return shared.queue.put(items)


@pytest.mark.parametrize(
    "needs", [[()], [("values",)], [("patches",), ()], [("patches",), ("values",)]]
)
def test_one_batch_returns_what_any_of_its_items_needs(
    worker: LaneWorker,
    lane: BrittleLane,
    shared: LaneContext,
    needs: list[tuple[PatchOutput, ...]],
) -> None:
    item = WorkItem(bucket=BUCKET, cost=4, payload=np.array([0]))
    shared.queue.put([replace(item, patch_outputs=names) for names in needs])
    assert run_one(worker, shared)[0]
    assert lane.patch_outputs == {name for names in needs for name in names}


@pytest.mark.parametrize(
    ("most", "codes"),
    [(4, [None, None, None]), (2, [None] * 3), (1, [None] * 3), (0, ["out_of_memory"] * 3)],
)
def test_a_batch_for_which_memory_is_too_small_runs_item_by_item(
    worker: LaneWorker, lane: BrittleLane, shared: LaneContext, most: int, codes: list[str | None]
) -> None:
    lane.most_items = most
    futures = submit(shared, len(codes))
    assert run_one(worker, shared)[0] == (most > 0)
    failures = [future.error for future in futures]
    assert [getattr(failure, "code", None) for failure in failures] == codes
    if most:
        assert [f.result().outputs["y"].item() for f in futures] == [0, 1, 2]
    else:
        assert all(isinstance(f, Unavailable) and f.retry_after_s for f in failures)


def run_one(worker: LaneWorker, shared: LaneContext) -> tuple[bool, Batch]:
    batch = shared.queue.take()
    assert batch
    return worker.run(batch), batch


def test_a_batch_updates_the_latency_model_and_cannot_be_interrupted_afterwards(
    worker: LaneWorker, shared: LaneContext
) -> None:
    (future,) = submit(shared)
    is_good, batch = run_one(worker, shared)
    assert is_good
    assert shared.latency.batch_s(BUCKET, 1) < 1.0, "it took half of the measured time"
    future.is_abandoned = True
    worker._interrupt_if_abandoned(batch)  # the lane would raise


def test_a_runtime_is_reloaded_until_a_probe_succeeds(
    worker: LaneWorker, lane: BrittleLane, pauses: list[float], metrics: Metrics
) -> None:
    lane.failing_probes, lane.failing_loads = 2, 1
    assert not worker.probe()
    assert worker.health.state.name == "REPAIR"
    assert worker.repair()
    assert worker.health.state.name == "READY"
    assert (lane.num_loads, pauses) == (3, [0, 1, 2])
    assert metrics.registry.get_sample_value("tipserve_lane_rebuilds_total") == 1


def test_a_slow_model_is_probed_less_often(worker: LaneWorker, shared: LaneContext) -> None:
    worker._shared = replace(shared, limits=replace(HEALTH_LIMITS, probe_interval_s=10))
    assert worker.probe_interval_s == 1.0 / PROBE_SHARE
    shared.latency.set_measured({BUCKET: LatencyCurve(0.0, 0.001)}, lambda _: 4)
    assert worker.probe_interval_s == 10


def test_a_stopping_lane_is_not_repaired(
    worker: LaneWorker, lane: BrittleLane, shared: LaneContext
) -> None:
    lane.failing_probes = 100
    worker.stop()
    assert not worker.repair()
    assert lane.num_loads == 0


LIMIT_S = 30.0


@pytest.fixture
def health(clock: Clock) -> LaneHealth:
    return LaneHealth(clock, LIMIT_S)


@pytest.mark.parametrize(
    ("expected_s", "limit_s"), [(1.0, LIMIT_S), (LIMIT_S, HANG_FACTOR * LIMIT_S)]
)
def test_a_run_over_its_limit_is_hung_until_it_ends(
    health: LaneHealth, clock: Clock, expected_s: float, limit_s: float
) -> None:
    assert health.idle_in_s == 0
    health.run_started(expected_s)
    clock.now = expected_s / 2
    assert health.idle_in_s == expected_s / 2
    clock.now = limit_s
    assert (health.state, health.idle_in_s) == (LaneState.READY, 0)
    clock.now += 5
    assert (health.state, health.unhealthy_since) == (LaneState.HUNG, limit_s)
    health.run_succeeded()
    assert (health.state, health.unhealthy_since) == (LaneState.READY, None)


def test_a_lane_is_unhealthy_from_the_first_failure_until_a_success(
    health: LaneHealth, clock: Clock
) -> None:
    for clock.now in (3.0, 4.0, 5.0):
        health.run_started(1.0)
        health.mark_unhealthy()
    assert (health.state, health.unhealthy_since) == (LaneState.REPAIR, 3.0)
    health.run_started(1.0)
    health.run_succeeded()
    assert health.state.name == "READY"


def test_a_model_is_unhealthy_once_its_last_lane_is(clock: Clock) -> None:
    lanes = [LaneHealth(clock, LIMIT_S) for _ in range(2)]
    lanes[0].mark_dead()
    assert unhealthy_since(lanes) is None
    clock.now = 7
    lanes[1].mark_unhealthy()
    assert unhealthy_since(lanes) == 7
    assert unhealthy_since([]) is None
