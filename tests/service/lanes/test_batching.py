"""Batches of idle lanes, interruption, trial batches, and lanes that fail, hang or stop."""

import threading
from collections.abc import Callable, Collection, Iterator
from itertools import repeat

import numpy as np
import pytest

from model.graphs import PatchOutput
from model.runtime.base import Interrupted
from service.errors import InternalError, Unavailable
from service.lanes.batching import Batcher, HealthLimits, LaneState, LaneWorker
from service.lanes.lane import Inputs, Lane
from service.lanes.work import BatchLimits, Bucket, ItemFuture, Outputs, WorkItem
from service.monitoring.metrics import Metrics
from tests.service.conftest import WAIT_S, Clock, sample

IMAGE, TEXT = Bucket("image", (28, 28)), Bucket("text", (8,))
LIMITS = BatchLimits(max_images=4, max_patches=100, max_tokens=100)
HANG_LIMIT_S = 30.0


class Runner(Lane):
    """Doubles its input; waits for a gate.

    Fails the next given number of trial batches, and batches of more than `most_items`.
    """

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.entered = threading.Semaphore(0)
        self.batches: list[list[float]] = []
        self.patch_outputs: set[PatchOutput] = set()
        self.is_interrupted = False
        self.num_interrupted = self.failing_trials = 0
        self.most_items = 64
        self.meanwhile: Callable[[], None] = lambda: None

    def run(
        self, bucket: Bucket, inputs: Inputs, patch_outputs: Collection[PatchOutput] = ()
    ) -> list[Outputs]:
        payloads = inputs[0].astype(np.float32)
        self.batches.append([float(p[0]) for p in payloads])
        self.patch_outputs = set(patch_outputs)
        self.entered.release()
        assert self.gate.wait(WAIT_S)
        self.meanwhile()
        if self.is_interrupted:
            self.is_interrupted = False
            raise Interrupted
        if len(payloads) > self.most_items:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return [{"y": 2 * p} for p in payloads]

    def run_trial(self) -> None:
        self.failing_trials -= 1
        if self.failing_trials >= 0:
            raise RuntimeError("trial")

    def interrupt(self) -> None:
        self.num_interrupted += 1
        self.is_interrupted = True
        self.gate.set()


@pytest.fixture
def runner() -> Runner:
    return Runner()


@pytest.fixture
def batcher(runner: Runner, metrics: Metrics) -> Iterator[Batcher]:
    made = Batcher([runner], limits=LIMITS, metrics=metrics)
    made.start()
    yield made
    runner.gate.set()
    assert made.stop(WAIT_S)


@pytest.fixture
def worker(runner: Runner, metrics: Metrics, clock: Clock) -> LaneWorker:
    """A worker that the test drives, with a clock that the test sets."""
    health = HealthLimits(trial_interval_s=10, hang_limit_s=HANG_LIMIT_S, retry_s=2.0)
    made = Batcher([runner], limits=LIMITS, metrics=metrics, health=health, clock=clock)
    runner.gate.set()
    return made.workers[0]


def items(
    *values: float, bucket: Bucket = IMAGE, needs: list[tuple[PatchOutput, ...]] | None = None
) -> list[WorkItem]:
    """Items whose payloads are filled with their values; texts are of several lengths."""
    lengths = [1 if bucket is IMAGE else int(v) % 4 + 1 for v in values]
    payloads = [np.full(length, v) for v, length in zip(values, lengths, strict=True)]
    return [
        WorkItem(bucket=bucket, cost=1, payload=payload, patch_outputs=names)
        for payload, names in zip(payloads, needs or repeat(()), strict=False)
    ]


def settled(future: ItemFuture) -> ItemFuture:
    """Wait for the end of an item."""
    is_over = threading.Event()
    future.add_done_callback(lambda _: is_over.set())
    assert is_over.wait(WAIT_S)
    return future


def run(worker: LaneWorker, batch_items: list[WorkItem]) -> tuple[bool, list[ItemFuture]]:
    """Run one batch."""
    queue = worker._batcher.queue
    futures = queue.put(batch_items)
    batch = queue.take()
    assert batch
    return worker.run(batch), futures


def test_an_idle_lane_takes_all_waiting_items(
    batcher: Batcher, runner: Runner, metrics: Metrics
) -> None:
    first = batcher.queue.put(items(1))
    assert runner.entered.acquire(timeout=WAIT_S)
    others = batcher.queue.put(items(2, 3)) + batcher.queue.put(items(4))
    runner.gate.set()
    results = [settled(f).result().outputs["y"][0] for f in first + others]
    assert results == [2, 4, 6, 8]
    assert runner.batches == [[1], [2, 3, 4]]
    assert sample(metrics, "batch_images_sum") == 4
    assert sample(metrics, "batch_patches_count") == 2


def test_a_batch_is_interrupted_once_its_last_caller_has_left(
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
    assert settled(next_one).result().outputs["y"][0] == 6
    assert all(isinstance(settled(f).error, InternalError) for f in (one, two))
    assert sample(metrics, "abandoned_total", reason="interrupted") == 2


def test_a_running_batch_of_texts_is_completed_for_the_cache(
    batcher: Batcher, runner: Runner
) -> None:
    (text,) = batcher.queue.put(items(4, bucket=TEXT))
    assert runner.entered.acquire(timeout=WAIT_S)
    assert not text.cancel()
    runner.gate.set()
    assert settled(text).result().outputs["y"][0] == 8
    assert runner.num_interrupted == 0


def test_stopping_answers_the_items_of_a_hung_lane(batcher: Batcher, runner: Runner) -> None:
    (running,) = batcher.queue.put(items(1))
    assert runner.entered.acquire(timeout=WAIT_S)
    assert not batcher.stop(0)
    assert isinstance(running.error, Unavailable)


@pytest.mark.parametrize(
    "needs", [[()], [("values",)], [("patches",), ()], [("patches",), ("values",)]]
)
def test_one_batch_returns_what_any_of_its_items_needs(
    worker: LaneWorker, runner: Runner, needs: list[tuple[PatchOutput, ...]]
) -> None:
    assert run(worker, items(*range(len(needs)), needs=needs))[0]
    assert runner.patch_outputs == {name for names in needs for name in names}


@pytest.mark.parametrize("most", [4, 2, 1, 0])
def test_a_batch_for_which_memory_is_too_small_runs_item_by_item(
    worker: LaneWorker, runner: Runner, most: int
) -> None:
    runner.most_items = most
    is_done, futures = run(worker, items(0, 1, 2))
    assert is_done == (most > 0)
    if most:
        assert [f.result().outputs["y"].item() for f in futures] == [0, 2, 4]
        return
    for future in futures:
        assert isinstance(future.error, Unavailable)
        assert (future.error.code, future.error.retry_after_s) == ("out_of_memory", 5.0)


@pytest.mark.parametrize(
    ("num_failing", "state"), [(0, LaneState.READY), (1, LaneState.READY), (2, LaneState.DEAD)]
)
def test_a_lane_whose_trial_batch_fails_twice_in_a_row_is_dead(
    worker: LaneWorker, runner: Runner, num_failing: int, state: LaneState
) -> None:
    states: list[LaneState] = []

    def pause(seconds: float) -> bool:
        assert seconds == 2.0
        states.append(worker.state)
        return False

    worker.pause = pause
    runner.failing_trials = num_failing
    assert worker.is_sound() == (state is LaneState.READY)
    assert worker.state is state
    assert states == [LaneState.FAILING][:num_failing]
    assert worker._batcher.queue.is_closed == (state is LaneState.DEAD)


def test_a_batch_over_its_limit_is_hung_until_it_ends(
    worker: LaneWorker, runner: Runner, clock: Clock
) -> None:
    states: list[LaneState] = []

    def meanwhile() -> None:
        for clock.now in (HANG_LIMIT_S, HANG_LIMIT_S + 0.1):
            states.append(worker.state)

    runner.meanwhile = meanwhile
    assert run(worker, items(0))[0]
    assert [*states, worker.state] == [LaneState.READY, LaneState.HUNG, LaneState.READY]
