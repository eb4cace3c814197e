"""The next batch lies ready, and nothing that happens meanwhile gets the wrong rows or is lost."""

import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.lanes.batch_queue import BatchQueue, BatchRules
from service.lanes.batching import Batcher
from service.lanes.work import BatchLimits, Bucket, Outputs, WorkItem
from service.lanes.worker import Inputs, Stage, collate
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


def hand_over(queue: BatchQueue, stage: Stage) -> tuple[list[int], Inputs]:
    batch = queue.take()
    assert batch
    return [int(e.item.payload[0]) for e in batch.entries], stage.inputs_of(batch)


def test_what_lies_ready_is_used_as_it_is(queue: BatchQueue) -> None:
    stage = Stage(queue)
    put(queue, 0, 1, 2, 3)
    assert stage.put_together()
    staged = stage._staged
    numbers, (rows,) = hand_over(queue, stage)
    assert numbers == rows[:, 0].tolist() == [0, 1, 2]
    assert staged is not None
    assert np.shares_memory(rows, staged.inputs[0])
    assert hand_over(queue, stage)[0] == [3], "and what does not lie ready is put together now"


def test_who_leaves_before_the_hand_over_is_dropped(queue: BatchQueue, metrics: Metrics) -> None:
    stage = Stage(queue)
    futures = put(queue, 0, 1, 2)
    assert stage.put_together()
    assert futures[1].cancel()
    numbers, (rows,) = hand_over(queue, stage)
    assert numbers == rows[:, 0].tolist() == [0, 2]
    sample = metrics.registry.get_sample_value
    assert sample("tipserve_abandoned_total", {"reason": "cancelled"}) == 1


def test_the_urgent_overtake_what_lies_ready(queue: BatchQueue) -> None:
    stage = Stage(queue)
    put(queue, 0, 1)
    assert stage.put_together()
    put(queue, 9, priority=1)
    numbers, (rows,) = hand_over(queue, stage)
    assert numbers == rows[:, 0].tolist() == [9, 0, 1]


def test_it_is_put_together_again_only_where_it_would_be_another(queue: BatchQueue) -> None:
    put(queue, 0, 1)
    known = [0, 1]
    assert queue.wait_and_peek([]) is not None
    found: list[Any] = []
    looking = threading.Thread(target=lambda: found.append(queue.wait_and_peek(known)))
    looking.start()
    put(queue, 2)
    looking.join(WAIT_S)
    assert [entry.number for entry in found[0]] == [0, 1, 2]


def test_it_ends_when_the_queue_is_closed(queue: BatchQueue) -> None:
    stage = Stage(queue)
    stage.start()
    put(queue, 0)
    queue.close()
    stage.join(WAIT_S)
    assert not stage._thread.is_alive()
    assert not stage.put_together()


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_each_item_is_in_the_batch_that_it_was_handed_over_with(data: st.DataObject) -> None:
    queue = BatchQueue(RULES, Metrics(), lambda: 0.0)
    stage = Stage(queue)
    futures: list[Any] = []
    handed: list[int] = []
    for _ in range(data.draw(st.integers(1, 15), "steps")):
        match data.draw(st.sampled_from(["put", "cancel", "stage", "take"]), "step"):
            case "put":
                bucket = data.draw(st.sampled_from([IMAGE, TEXT]))
                priority = data.draw(st.sampled_from([1, 2, 3]))
                futures += put(queue, len(futures), bucket=bucket, priority=priority)
            case "cancel" if futures:
                data.draw(st.sampled_from(futures)).cancel()
            case "stage" if sum(queue.depths().values()):
                staged = stage._staged
                waiting = queue._peek()
                if staged is None or [e.number for e in waiting] != list(staged.row_of):
                    assert stage.put_together()
            case "take" if (batch := queue.take()) is not None:
                payloads = [entry.item.payload for entry in batch.entries]
                expected = collate(batch.bucket, payloads)
                for made, array in zip(stage.inputs_of(batch), expected, strict=True):
                    width = array.shape[1]  # what was padded for a text that has left stays padded
                    np.testing.assert_array_equal(made[:, :width], array)
                    assert not made[:, width:].any()
                handed += [int(payload[0]) for payload in payloads]
    assert len(handed) == len(set(handed))
    assert not [n for n in handed if futures[n].cancelled()]


class Doubling:
    """Doubles its input, on as many lanes as there are."""

    probe_bucket = IMAGE

    def run(self, bucket: Bucket, inputs: Inputs) -> list[Outputs]:
        return [{"y": 2 * row} for row in inputs[0].astype(np.float32)]

    def probe(self) -> None:
        """It is always well."""

    def rebuild(self) -> None:
        raise AssertionError("it was not broken")

    def interrupt(self) -> None:
        """It is quick."""


def test_with_real_lanes_every_answer_is_its_items_own(metrics: Metrics) -> None:
    batcher = Batcher([Doubling(), Doubling()], rules=RULES, metrics=metrics)
    batcher.start()
    futures = [batcher.submit([item(n), item(n, priority=1)]) for n in range(300)]
    for n, pair in enumerate(futures):
        assert [future.result(WAIT_S).outputs["y"][0] for future in pair] == [2 * n, 2 * n]
    assert batcher.stop(WAIT_S)
    assert batcher._stage
    assert not batcher._stage._thread.is_alive()
