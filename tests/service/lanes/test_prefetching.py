"""Batches are collated ahead of time, and each item still gets its own row."""

import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.lanes.batch_queue import BatchQueue, BatchRules
from service.lanes.batching import Batcher, BatchPrefetcher
from service.lanes.lane import Inputs, collate
from service.lanes.work import BatchLimits, Bucket, Outputs, WorkItem
from service.monitoring.metrics import Metrics

IMAGE, TEXT = Bucket("image", (28, 28)), Bucket("text", (8,))
LIMITS = BatchLimits(max_items=3, max_cost=100)
RULES = BatchRules(limits={"image": LIMITS, "text": LIMITS}, prepare_ahead=True)
WAIT_S = 20.0


@pytest.fixture
def queue(metrics: Metrics) -> BatchQueue:
    return BatchQueue(RULES, metrics, lambda: 0.0)


def item(number: int, *, bucket: Bucket = IMAGE, priority: int = 2) -> WorkItem:
    payload = np.full((1,) if bucket == IMAGE else (number % 4 + 1,), number)
    return WorkItem(bucket=bucket, cost=1, payload=payload, priority=priority)


def put(queue: BatchQueue, *numbers: int, **fields: Any) -> Any:
    return queue.put([item(number, **fields) for number in numbers])


def take(queue: BatchQueue, prefetcher: BatchPrefetcher) -> tuple[list[int], Inputs]:
    batch = queue.take()
    assert batch
    return [int(e.item.payload[0]) for e in batch.entries], prefetcher.inputs_of(batch)


def test_a_prefetched_batch_is_not_copied(queue: BatchQueue) -> None:
    prefetcher = BatchPrefetcher(queue)
    put(queue, 0, 1, 2, 3)
    assert prefetcher.prefetch()
    prefetched = prefetcher._prefetched
    numbers, (rows,) = take(queue, prefetcher)
    assert numbers == rows[:, 0].tolist() == [0, 1, 2]
    assert prefetched is not None
    assert np.shares_memory(rows, prefetched.inputs[0])
    assert take(queue, prefetcher)[0] == [3], "the rest is collated now"


def test_an_item_cancelled_after_prefetching_is_dropped(
    queue: BatchQueue, metrics: Metrics
) -> None:
    prefetcher = BatchPrefetcher(queue)
    futures = put(queue, 0, 1, 2)
    assert prefetcher.prefetch()
    assert futures[1].cancel()
    numbers, (rows,) = take(queue, prefetcher)
    assert numbers == rows[:, 0].tolist() == [0, 2]
    sample = metrics.registry.get_sample_value
    assert sample("tipserve_abandoned_total", {"reason": "cancelled"}) == 1


def test_an_urgent_item_overtakes_a_prefetched_batch(queue: BatchQueue) -> None:
    prefetcher = BatchPrefetcher(queue)
    put(queue, 0, 1)
    assert prefetcher.prefetch()
    put(queue, 9, priority=1)
    numbers, (rows,) = take(queue, prefetcher)
    assert numbers == rows[:, 0].tolist() == [9, 0, 1]


def test_only_a_different_batch_is_prefetched(queue: BatchQueue) -> None:
    put(queue, 0, 1)
    known = [0, 1]
    assert queue.wait_and_peek([]) is not None
    found: list[Any] = []
    looking = threading.Thread(target=lambda: found.append(queue.wait_and_peek(known)))
    looking.start()
    put(queue, 2)
    looking.join(WAIT_S)
    assert [entry.number for entry in found[0]] == [0, 1, 2]


def test_the_thread_ends_when_the_queue_is_closed(queue: BatchQueue) -> None:
    prefetcher = BatchPrefetcher(queue)
    prefetcher.start()
    put(queue, 0)
    queue.close()
    prefetcher.join(WAIT_S)
    assert not prefetcher._thread.is_alive()
    assert not prefetcher.prefetch()


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_each_item_has_its_own_row(data: st.DataObject) -> None:
    queue = BatchQueue(RULES, Metrics(), lambda: 0.0)
    prefetcher = BatchPrefetcher(queue)
    futures: list[Any] = []
    taken: list[int] = []
    for _ in range(data.draw(st.integers(1, 15), "steps")):
        match data.draw(st.sampled_from(["put", "cancel", "prefetcher", "take"]), "step"):
            case "put":
                bucket = data.draw(st.sampled_from([IMAGE, TEXT]))
                priority = data.draw(st.sampled_from([1, 2, 3]))
                futures += put(queue, len(futures), bucket=bucket, priority=priority)
            case "cancel" if futures:
                data.draw(st.sampled_from(futures)).cancel()
            case "prefetcher" if sum(queue.depths().values()):
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
    assert not [n for n in taken if futures[n].cancelled()]


class Doubling:
    """Doubles its input."""

    probe_bucket = IMAGE

    def run(self, bucket: Bucket, inputs: Inputs) -> list[Outputs]:
        return [{"y": 2 * row} for row in inputs[0].astype(np.float32)]

    def probe(self) -> None:
        """Succeeds."""

    def reload(self) -> None:
        raise AssertionError("not broken")

    def interrupt(self) -> None:
        """Not needed: runs are short."""


def test_with_lane_threads_each_item_gets_its_own_answer(metrics: Metrics) -> None:
    batcher = Batcher([Doubling(), Doubling()], rules=RULES, metrics=metrics)
    batcher.start()
    futures = [batcher.queue.put([item(n), item(n, priority=1)]) for n in range(300)]
    for n, pair in enumerate(futures):
        assert [future.result(WAIT_S).outputs["y"][0] for future in pair] == [2 * n, 2 * n]
    assert batcher.stop(WAIT_S)
    assert batcher._prefetcher
    assert not batcher._prefetcher._thread.is_alive()
