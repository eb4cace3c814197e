"""Queue and lanes under any order of events: every item is resolved once, with its own result.

One or two lanes are driven by hand, with a clock that the test sets: no threads, no sleeps. While a
lane computes, any other event may happen, including a whole batch of the other lane.
"""

from collections.abc import Callable, Collection
from functools import partial
from typing import Any, Literal

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from model.graphs import PatchOutput
from model.runtime.base import Interrupted
from service.call import PRIORITIES
from service.errors import ServiceError, Unavailable
from service.lanes.batch_queue import PRIORITY_STEP_S
from service.lanes.batching import Batcher, HealthLimits, LaneState
from service.lanes.lane import Inputs, Lane
from service.lanes.work import BatchLimits, Bucket, ItemFuture, Outputs, WorkItem
from service.monitoring.metrics import Metrics

SMALL, WIDE, TEXT = Bucket("image", (28, 28)), Bucket("image", (28, 56)), Bucket("text", (8,))
LIMITS = BatchLimits(max_images=3, max_patches=20, max_tokens=20)
Outcome = Literal["good", "raises", "short", "long"]
OUTCOMES = st.sampled_from(["good", "good", "good", "raises", "short", "long"])


class ScriptedLane(Lane):
    """Multiplies by ten, ends as the test decides, and runs other events meanwhile."""

    def __init__(self, begin: Callable[[list[int]], None]) -> None:
        self.outcome: Outcome = "good"
        self.failing_trials = 0
        self.meanwhile: Callable[[], None] = lambda: None
        self._begin = begin
        self._is_interrupted = False

    def run(
        self, bucket: Bucket, inputs: Inputs, patch_outputs: Collection[PatchOutput] = ()
    ) -> list[Outputs]:
        indices = [int(row[0]) for row in inputs[0]]
        self._begin(indices)
        self._is_interrupted = False
        self.meanwhile()
        if self._is_interrupted:
            raise Interrupted("abandoned")
        if self.outcome == "raises":
            raise RuntimeError("broken")
        results: list[Outputs] = [{"y": np.array([i * 10.0], np.float32)} for i in indices]
        return {"good": results, "short": results[1:], "long": results * 2}[self.outcome]

    def run_trial(self) -> None:
        self.failing_trials -= 1
        if self.failing_trials >= 0:
            raise RuntimeError("broken")

    def interrupt(self) -> None:
        self._is_interrupted = True


class EngineMachine(RuleBasedStateMachine):
    """Clients submit and leave; lanes compute, fail and die; the server stops."""

    @initialize(num_lanes=st.integers(1, 2))
    def start(self, num_lanes: int) -> None:
        self.now = 0.0
        self.accepted: list[ItemFuture] = []
        self.answers: list[int] = []
        self.cancelled: set[int] = set()
        self.begun: set[int] = set()
        self.ranks: dict[int, tuple[str, float, int]] = {}
        self.is_stopped = False
        self.lanes = [ScriptedLane(self.begin_batch) for _ in range(num_lanes)]
        self.batcher = Batcher(
            self.lanes,
            limits=LIMITS,
            metrics=Metrics(),
            health=HealthLimits(retry_s=0.0),
            clock=lambda: self.now,
        )
        self.idle = set(range(num_lanes))

    def begin_batch(self, indices: list[int]) -> None:
        assert not self.cancelled & set(indices), "computed after its cancellation"
        assert not self.begun & set(indices), "computed twice"
        self.begun |= set(indices)
        for caller in ("http", "grpc"):
            own = [self.ranks[i] for i in indices if self.ranks[i][0] == caller]
            assert own == sorted(own), "not in scheduling order"

    @rule(
        buckets=st.lists(st.sampled_from([SMALL, WIDE, TEXT]), min_size=1, max_size=5),
        patience_s=st.integers(0, 5),
        priority=st.sampled_from(PRIORITIES),
        caller=st.sampled_from(["http", "grpc"]),
        cost=st.integers(1, 25),
    )
    def submit(self, buckets: list[Bucket], patience_s: int, **fields: Any) -> None:
        first = len(self.accepted)
        deadline = self.now + patience_s
        items = [
            WorkItem(bucket=bucket, payload=np.array([first + i]), deadline=deadline, **fields)
            for i, bucket in enumerate(buckets)
        ]
        try:
            futures = self.batcher.queue.put(items)
        except Unavailable:
            assert self.is_stopped or not self.batcher.is_ready
            return
        for future in futures:
            rank = self.now + (fields["priority"] - 1) * PRIORITY_STEP_S
            self.ranks[len(self.accepted)] = (fields["caller"], rank, len(self.accepted))
            future.add_done_callback(partial(self.count, len(self.accepted)))
            self.accepted.append(future)

    def count(self, index: int, _: Any) -> None:
        self.answers.append(index)

    @rule(share=st.floats(0, 1))
    def leave(self, share: float) -> None:
        """A client leaves: its item waits, runs, or is done."""
        if self.accepted:
            index = int(share * (len(self.accepted) - 1))
            if self.accepted[index].cancel():
                self.cancelled.add(index)

    @rule(seconds=st.integers(1, 3))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @precondition(lambda self: self.idle)
    @rule(data=st.data(), outcome=OUTCOMES, failing_trials=st.sampled_from([0, 0, 1, 9]))
    def compute(self, data: st.DataObject, outcome: Outcome, failing_trials: int) -> None:
        """An idle lane does one step of its thread."""
        index = data.draw(st.sampled_from(sorted(self.idle)), "lane")
        worker, lane = self.batcher.workers[index], self.lanes[index]
        if worker.state is LaneState.DEAD:
            return
        lane.outcome, lane.failing_trials = outcome, failing_trials
        lane.meanwhile = partial(self.disturb, data)
        self.idle.discard(index)
        batch = self.batcher.queue.take()
        if batch is None:
            worker.is_sound()
        else:
            assert {item.bucket for item in batch.items} == {batch.bucket}
            assert LIMITS.fits(batch.bucket.kind, len(batch.items), batch.cost)
            if not worker.run(batch):
                worker.is_sound()
            assert all(item.future.done() for item in batch.items)
        self.idle.add(index)

    def disturb(self, data: st.DataObject) -> None:
        """Events while a lane computes."""
        for _ in range(data.draw(st.integers(0, 3), "disturbances")):
            match data.draw(st.sampled_from(["leave", "wait", "submit", "other lane", "stop"])):
                case "leave":
                    self.leave(data.draw(st.floats(0, 1)))
                case "wait":
                    self.wait(1)
                case "submit":
                    self.submit([SMALL], 3, priority=1, caller="grpc", cost=4)
                case "other lane" if self.idle:
                    self.compute(data, data.draw(OUTCOMES), 0)
                case "stop":
                    self.stop()

    @rule()
    def stop(self) -> None:
        self.is_stopped = True
        self.batcher.stop(0)

    @invariant()
    def every_result_is_the_items_own(self) -> None:
        for index, future in enumerate(self.accepted):
            if future.done() and not future.cancelled() and future.error is None:
                assert future.result().outputs["y"][0] == index * 10
        assert len(self.answers) == len(set(self.answers)), "resolved twice"

    @invariant()
    def no_item_waits_for_dead_lanes(self) -> None:
        if all(w.state is LaneState.DEAD for w in self.batcher.workers):
            assert all(future.done() for future in self.accepted)

    def teardown(self) -> None:
        self.batcher.stop(0)
        for index, future in enumerate(self.accepted):
            assert future.done(), "never resolved"
            assert future.cancelled() == (index in self.cancelled)
            assert isinstance(future.error, ServiceError | None)
        assert sorted(self.answers) == list(range(len(self.accepted)))


EngineMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestEngine = EngineMachine.TestCase
