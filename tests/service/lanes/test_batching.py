"""Batches fail alone, are collated ahead of time, and stopping resolves every item."""

import os
import threading
import time
import weakref
from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.graphs import PatchOutput
from model.runtime.base import Interrupted
from service.errors import InternalError, Unavailable
from service.lanes.batch_queue import BatchQueue, BatchRules
from service.lanes.batching import Batcher, BatchPrefetcher
from service.lanes.lane import Inputs, collate
from service.lanes.latency_model import LatencyCurve
from service.lanes.work import BatchLimits, Bucket, ItemFuture, Outputs, WorkItem
from service.lanes.worker import HealthLimits
from service.monitoring.metrics import Metrics
from tests.service.conftest import WAIT_S

IMAGE, TEXT = Bucket("image", (28, 28)), Bucket("text", (8,))
LIMITS = BatchLimits(max_items=4, max_cost=100)
RULES = BatchRules(limits={"image": LIMITS, "text": LIMITS})
AHEAD_RULES = replace(RULES, prepare_ahead=True)


class Runner:
    """Doubles its input; waits for a gate, and fails on negative numbers."""

    probe_bucket = IMAGE

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
        patch_outputs: Collection[PatchOutput],
    ) -> list[Outputs]:
        payloads = inputs[0].astype(np.float32)
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


class BrokenRunner(Runner):
    """Always fails, also after a reload."""

    def run(
        self,
        bucket: Bucket,
        inputs: Inputs,
        patch_outputs: Collection[PatchOutput],
    ) -> list[Outputs]:
        self.entered.release()
        raise RuntimeError("the device is gone")

    def probe(self) -> None:
        raise RuntimeError("the device is gone")

    def reload(self) -> None:
        """Succeeds, and changes nothing."""


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


@pytest.fixture
def queue(metrics: Metrics) -> BatchQueue:
    return BatchQueue(AHEAD_RULES, metrics, lambda: 0.0)


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


@pytest.mark.skipif(os.sched_getscheduler(0) != os.SCHED_OTHER, reason="kept by threads")
def test_a_lane_takes_no_core_from_those_that_wake_it(batcher: Batcher, runner: Runner) -> None:
    batcher.queue.put(items(1))
    assert runner.entered.acquire(timeout=WAIT_S)
    assert os.sched_getscheduler(batcher.workers[0].thread.native_id or 0) == os.SCHED_BATCH


def test_an_idle_lane_holds_neither_images_nor_outputs(batcher: Batcher, runner: Runner) -> None:
    runner.gate.set()
    (item,) = items(1)
    (future,) = batcher.queue.put([item])
    output = settled(future).result().outputs["y"]
    held = weakref.ref(item.payload), weakref.ref(output)
    del item, future, output
    until = time.monotonic() + WAIT_S
    while any(array() is not None for array in held) and time.monotonic() < until:
        time.sleep(0.01)
    assert [array() for array in held] == [None, None]


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


def test_a_failing_batch_fails_alone_and_keeps_its_cause(batcher: Batcher, runner: Runner) -> None:
    runner.gate.set()
    (bad,) = batcher.queue.put(items(-1))
    error = settled(bad).error
    assert isinstance(error, InternalError)
    assert isinstance(error.__cause__, ValueError)
    assert "negative" not in error.message
    (good,) = batcher.queue.put(items(5))
    assert settled(good).result().outputs["y"][0] == 10


def test_stopping_lets_the_running_batch_finish(batcher: Batcher, runner: Runner) -> None:
    (running,) = batcher.queue.put(items(1))
    assert runner.entered.acquire(timeout=WAIT_S)
    (waiting,) = batcher.queue.put(items(2))
    stopper = threading.Thread(target=batcher.stop, args=(WAIT_S,))
    stopper.start()
    assert isinstance(settled(waiting).error, Unavailable)
    runner.gate.set()
    assert settled(running).result().outputs["y"][0] == 2
    stopper.join(WAIT_S)
    with pytest.raises(Unavailable):
        batcher.queue.put(items(3))


def test_stopping_answers_the_items_of_a_hung_lane(batcher: Batcher, runner: Runner) -> None:
    (running,) = batcher.queue.put(items(1))
    assert runner.entered.acquire(timeout=WAIT_S)
    assert not batcher.stop(0)
    assert isinstance(running.error, Unavailable)


def test_other_lanes_keep_serving_when_one_is_dead(runner: Runner, metrics: Metrics) -> None:
    runner.gate.set()
    limits = HealthLimits(reload_pauses_s=(0,))
    batcher = Batcher([BrokenRunner(), runner], rules=RULES, metrics=metrics, limits=limits)
    batcher.start()
    failed = 0
    while batcher.lane_states()["dead"] == 0:
        failed += isinstance(settled(batcher.queue.put(items(1))[0]).error, InternalError)
    answers = [settled(batcher.queue.put(items(n))[0]).result().outputs["y"][0] for n in range(20)]
    assert answers == [2 * n for n in range(20)]
    assert failed == 1, "one batch failed; the lane took no other during its repair"
    assert batcher.is_ready
    assert batcher.stop(WAIT_S)


def test_when_the_last_lane_is_dead_all_items_fail(metrics: Metrics) -> None:
    limits = HealthLimits(reload_pauses_s=(0,))
    batcher = Batcher([BrokenRunner()], rules=RULES, metrics=metrics, limits=limits)
    batcher.start()
    errors = [settled(future).error for future in batcher.queue.put(items(*range(9)))]
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
    assert broken.entered.acquire(blocking=False) is False, "detected without a batch"
    assert batcher.stop(WAIT_S)


def test_the_expected_time_counts_waiting_items_lanes_and_kinds(
    runner: Runner, metrics: Metrics
) -> None:
    rules = BatchRules(limits={"image": LIMITS, "depth": LIMITS})
    batcher = Batcher([runner, Runner()], rules=rules, metrics=metrics, clock=lambda: 0.0)
    curves = {IMAGE: LatencyCurve(0.0, 2.0), Bucket("depth", IMAGE.shape): LatencyCurve(0, 5.0)}
    batcher.latency.set_measured(curves, lambda _: 1)
    assert batcher.done_in_s(1, priority=2) == 2.0, "idle lanes"
    assert batcher.done_in_s(1, priority=2, kind="depth") == 5.0
    batcher.queue.put(items(*range(6)))
    assert batcher.done_in_s(1, priority=1) == 2.0
    assert batcher.done_in_s(1, priority=2) == 8.0
    assert batcher.done_in_s(4, priority=3) == 10.0
    batcher.workers[0].health.run_started(7.0)
    assert batcher.done_in_s(1, priority=2) == (12 + 7) / 2 + 2
    assert batcher.done_in_s(1, priority=1) == 2.0, "the other lane is idle"
    batcher.workers[1].health.mark_dead()
    assert batcher.done_in_s(1, priority=1) == 7 + 2
    batcher.stop(0)


def test_a_prefetched_batch_is_not_copied(queue: BatchQueue) -> None:
    prefetcher = BatchPrefetcher(queue)
    queue.put(items(0, 1, 2, 3, 4))
    assert prefetcher.prefetch()
    prefetched = prefetcher._prefetched
    batch = queue.take()
    assert batch
    assert prefetched is not None
    (rows,) = prefetcher.inputs_of(batch)
    assert rows[:, 0].tolist() == [0, 1, 2, 3]
    assert np.shares_memory(rows, prefetched.inputs[0])


def test_only_a_different_batch_is_prefetched(queue: BatchQueue) -> None:
    queue.put(items(0, 1))
    assert queue.wait_and_peek([]) is not None
    found: list[Any] = []
    looking = threading.Thread(target=lambda: found.append(queue.wait_and_peek([0, 1])))
    looking.start()
    queue.put(items(2))
    looking.join(WAIT_S)
    assert [entry.number for entry in found[0]] == [0, 1, 2]


def test_the_prefetcher_ends_when_the_queue_is_closed(queue: BatchQueue) -> None:
    prefetcher = BatchPrefetcher(queue)
    prefetcher.start()
    queue.put(items(0))
    queue.close()
    prefetcher.join(WAIT_S)
    assert not prefetcher._thread.is_alive()
    assert not prefetcher.prefetch()


@given(st.data())
@settings(max_examples=70, deadline=None)
def test_each_prefetched_item_has_its_own_row(data: st.DataObject) -> None:
    queue = BatchQueue(AHEAD_RULES, Metrics(), lambda: 0.0)
    prefetcher = BatchPrefetcher(queue)
    futures: list[Any] = []
    taken: list[int] = []
    for _ in range(data.draw(st.integers(1, 15), "steps")):
        match data.draw(st.sampled_from(["put", "cancel", "prefetch", "take"]), "step"):
            case "put":
                bucket = data.draw(st.sampled_from([IMAGE, TEXT]))
                priority = data.draw(st.sampled_from([1, 2, 3]))
                futures += queue.put(items(len(futures), bucket=bucket, priority=priority))
            case "cancel" if futures:
                data.draw(st.sampled_from(futures)).cancel()
            case "prefetch" if sum(queue.depths().values()):
                prefetched = prefetcher._prefetched
                waiting = queue._peek()
                if prefetched is None or [e.number for e in waiting] != list(prefetched.row_of):
                    assert prefetcher.prefetch()
            case "take" if (batch := queue.take()) is not None:
                payloads = [entry.item.payload for entry in batch.entries]
                expected = collate(batch.bucket, payloads)
                for made, array in zip(prefetcher.inputs_of(batch), expected, strict=True):
                    width = array.shape[1]  # padding for a cancelled text stays
                    np.testing.assert_array_equal(made[:, :width], array)
                    assert not made[:, width:].any()
                taken += [int(payload[0]) for payload in payloads]
    assert len(taken) == len(set(taken))
    assert not [n for n in taken if futures[n].state == "cancelled"]


def test_with_lane_threads_each_item_gets_its_own_answer(metrics: Metrics) -> None:
    lanes = [Runner(), Runner()]
    for lane in lanes:
        lane.gate.set()
    batcher = Batcher(lanes, rules=AHEAD_RULES, metrics=metrics)
    batcher.start()
    futures = [batcher.queue.put([*items(n), *items(n, priority=1)]) for n in range(300)]
    for n, pair in enumerate(futures):
        assert [settled(future).result().outputs["y"][0] for future in pair] == [2 * n, 2 * n]
    assert batcher.stop(WAIT_S)
    assert batcher._prefetcher
    assert not batcher._prefetcher._thread.is_alive()
