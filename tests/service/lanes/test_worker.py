"""A worker tracks its lane's health: trial batches, batches that fail, batches that hang."""

from collections.abc import Callable, Collection
from dataclasses import replace

import numpy as np
import pytest

from model.graphs import PatchOutput
from service.errors import Unavailable
from service.lanes.batch_queue import BatchQueue, BatchRules
from service.lanes.lane import Inputs, Lane
from service.lanes.work import BatchLimits, Bucket, ItemFuture, Outputs, WorkItem
from service.lanes.worker import HealthLimits, LaneContext, LaneState, LaneWorker
from service.monitoring.metrics import Metrics
from tests.service.conftest import Clock

BUCKET = Bucket("image", (28, 28))
HANG_LIMIT_S = 30.0


class BrittleLane(Lane):
    """Fails the next given number of trial batches, and batches of more than `most_items`."""

    def __init__(self, clock: Clock) -> None:
        self.failing_trials = 0
        self.most_items = 64
        self.patch_outputs: set[PatchOutput] = set()
        self.meanwhile: Callable[[], None] = lambda: None
        self._clock = clock

    def run(
        self, bucket: Bucket, inputs: Inputs, patch_outputs: Collection[PatchOutput] = ()
    ) -> list[Outputs]:
        payloads = inputs[0]
        self.meanwhile()
        if len(payloads) > self.most_items:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        self._clock.now += 0.5
        self.patch_outputs = set(patch_outputs)
        return [{"y": payload} for payload in payloads]

    def run_trial(self) -> None:
        self._clock.now += 1.0
        self.failing_trials -= 1
        if self.failing_trials >= 0:
            raise RuntimeError("trial")

    def interrupt(self) -> None:
        raise AssertionError("no caller left")


@pytest.fixture
def lane(clock: Clock) -> BrittleLane:
    return BrittleLane(clock)


@pytest.fixture
def shared(clock: Clock, metrics: Metrics) -> LaneContext:
    rules = BatchRules(limits={"image": BatchLimits(max_items=4, max_cost=100)})
    limits = HealthLimits(trial_interval_s=10, hang_limit_s=HANG_LIMIT_S, retry_s=2.0)
    queue = BatchQueue(rules, metrics, clock)
    return LaneContext(queue=queue, metrics=metrics, limits=limits, clock=clock)


@pytest.fixture
def dead() -> list[str]:
    return []


@pytest.fixture
def worker(lane: BrittleLane, shared: LaneContext, dead: list[str]) -> LaneWorker:
    return LaneWorker(lane, shared, 0, on_dead=lambda: dead.append("dead"))


def run(worker: LaneWorker, *needs: Collection[PatchOutput]) -> tuple[bool, list[ItemFuture]]:
    """Run one batch of items with these needs."""
    item = WorkItem(bucket=BUCKET, cost=4, payload=np.array([0]))
    items = [
        replace(item, payload=np.array([n]), patch_outputs=names) for n, names in enumerate(needs)
    ]
    futures = worker._shared.queue.put(items)
    batch = worker._shared.queue.take()
    assert batch
    return worker.run(batch), futures


@pytest.mark.parametrize(
    "needs", [[()], [("values",)], [("patches",), ()], [("patches",), ("values",)]]
)
def test_one_batch_returns_what_any_of_its_items_needs(
    worker: LaneWorker, lane: BrittleLane, needs: list[tuple[PatchOutput, ...]]
) -> None:
    assert run(worker, *needs)[0]
    assert lane.patch_outputs == {name for names in needs for name in names}


@pytest.mark.parametrize("most", [4, 2, 1, 0])
def test_a_batch_for_which_memory_is_too_small_runs_item_by_item(
    worker: LaneWorker, lane: BrittleLane, most: int
) -> None:
    lane.most_items = most
    is_done, futures = run(worker, (), (), ())
    assert is_done == (most > 0)
    if most:
        assert [f.result().outputs["y"].item() for f in futures] == [0, 1, 2]
        return
    for future in futures:
        assert isinstance(future.error, Unavailable)
        assert (future.error.code, future.error.retry_after_s) == ("out_of_memory", 5.0)


@pytest.mark.parametrize(
    ("num_failing", "state"),
    [(0, LaneState.READY), (1, LaneState.READY), (2, LaneState.DEAD)],
)
def test_a_lane_whose_trial_batch_fails_twice_in_a_row_is_dead(
    worker: LaneWorker, lane: BrittleLane, dead: list[str], num_failing: int, state: LaneState
) -> None:
    states: list[LaneState] = []

    def pause(seconds: float) -> bool:
        assert seconds == 2.0
        states.append(worker.state)
        return False

    worker.pause = pause
    lane.failing_trials = num_failing
    assert worker.is_sound() == (state is LaneState.READY)
    assert worker.state is state
    assert states == [LaneState.FAILING][:num_failing]
    assert dead == ["dead"] * (state is LaneState.DEAD)


def test_a_batch_over_its_limit_is_hung_until_it_ends(
    worker: LaneWorker, lane: BrittleLane, clock: Clock
) -> None:
    states: list[LaneState] = []

    def meanwhile() -> None:
        for clock.now in (HANG_LIMIT_S, HANG_LIMIT_S + 0.1):
            states.append(worker.state)

    lane.meanwhile = meanwhile
    assert run(worker, ())[0]
    assert [*states, worker.state] == [LaneState.READY, LaneState.HUNG, LaneState.READY]
