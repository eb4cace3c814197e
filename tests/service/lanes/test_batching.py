"""Batches of idle lanes, interruption, and a stop while a lane hangs."""

import threading
from collections.abc import Collection, Iterator

import numpy as np
import pytest

from model.graphs import PatchOutput
from model.runtime.base import Interrupted
from service.errors import InternalError, Unavailable
from service.lanes.batch_queue import BatchRules
from service.lanes.batching import Batcher
from service.lanes.lane import Inputs, Lane
from service.lanes.work import BatchLimits, Bucket, ItemFuture, Outputs, WorkItem
from service.monitoring.metrics import Metrics
from tests.service.conftest import WAIT_S

IMAGE, TEXT = Bucket("image", (28, 28)), Bucket("text", (8,))
LIMITS = BatchLimits(max_items=4, max_cost=100)
RULES = BatchRules(limits={"image": LIMITS, "text": LIMITS})


class Runner(Lane):
    """Doubles its input; waits for a gate."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.entered = threading.Semaphore(0)
        self.batches: list[list[float]] = []
        self.is_interrupted = False
        self.num_interrupted = 0

    def run(
        self,
        bucket: Bucket,
        inputs: Inputs,
        patch_outputs: Collection[PatchOutput] = (),
    ) -> list[Outputs]:
        payloads = inputs[0].astype(np.float32)
        self.batches.append([float(p[0]) for p in payloads])
        self.entered.release()
        assert self.gate.wait(WAIT_S)
        if self.is_interrupted:
            self.is_interrupted = False
            raise Interrupted
        return [{"y": 2 * p} for p in payloads]

    def run_trial(self) -> None:
        """Succeeds."""

    def interrupt(self) -> None:
        self.num_interrupted += 1
        self.is_interrupted = True
        self.gate.set()


@pytest.fixture
def runner() -> Runner:
    return Runner()


@pytest.fixture
def batcher(runner: Runner, metrics: Metrics) -> Iterator[Batcher]:
    made = Batcher([runner], rules=RULES, metrics=metrics)
    made.start()
    yield made
    runner.gate.set()
    assert made.stop(WAIT_S)


def items(*values: float, bucket: Bucket = IMAGE, priority: int = 2) -> list[WorkItem]:
    """Items whose payloads are filled with their values; texts are of several lengths."""
    lengths = [1 if bucket is IMAGE else int(v) % 4 + 1 for v in values]
    payloads = [np.full(length, v) for v, length in zip(values, lengths, strict=True)]
    return [WorkItem(bucket=bucket, cost=1, payload=p, priority=priority) for p in payloads]


def settled(future: ItemFuture) -> ItemFuture:
    """Wait for the end of an item."""
    is_over = threading.Event()
    future.when_done(lambda _: is_over.set())
    assert is_over.wait(WAIT_S)
    return future


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
    assert metrics.registry.get_sample_value("tipserve_batch_images_sum") == 4
    assert metrics.registry.get_sample_value("tipserve_batch_patches_count") == 2


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
    abandoned = {"reason": "interrupted"}
    assert metrics.registry.get_sample_value("tipserve_abandoned_total", abandoned) == 2


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
