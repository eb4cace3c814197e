"""Dynamic batching: a queue per shape in front of work-conserving lanes."""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future

from service.call import Clock
from service.errors import Unavailable
from service.lanes.batch_queue import BatchCounts, BatchQueue, BatchRules
from service.lanes.latency_model import CostBook
from service.lanes.work import Completed, Kind, WorkItem, settle
from service.lanes.worker import (
    LaneCare,
    LaneContext,
    LaneRunner,
    LaneState,
    LaneWorker,
    Pulse,
    Stage,
    collate_batch,
    device_unhealthy,
    num_ready,
    unwell_since,
)
from service.monitoring.metrics import Metrics


class Batcher:
    """One queue and its lanes. `submit` may be called from any thread."""

    def __init__(
        self,
        lanes: Sequence[LaneRunner],
        *,
        rules: BatchRules,
        metrics: Metrics,
        care: LaneCare | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self.costs = CostBook(rules.limits, clock)
        self.queue = BatchQueue(rules, metrics, clock)
        self.counts = BatchCounts()
        self._clock = clock
        self._care = care or LaneCare()
        self._stage = Stage(self.queue) if rules.prepare_ahead else None
        shared = LaneContext(
            queue=self.queue,
            costs=self.costs,
            metrics=metrics,
            care=self._care,
            clock=clock,
            counts=self.counts,
            inputs_of=self._stage.inputs_of if self._stage else collate_batch,
        )
        self.workers = [
            LaneWorker(lane, shared, index, self._on_death) for index, lane in enumerate(lanes)
        ]
        self.pulses = [worker.pulse for worker in self.workers]

    def start(self) -> None:
        """Start the lanes."""
        if self._stage:
            self._stage.start()
        for worker in self.workers:
            worker.thread.start()

    def submit(self, items: Sequence[WorkItem]) -> list["Future[Completed]"]:
        """Queue the items of one request; the i-th future answers the i-th item.

        Cancelling a future frees its item if no lane has taken it yet.

        Raises:
            Unavailable: The batcher is stopping, or all its lanes are dead.
        """
        return self.queue.put(items)

    @property
    def is_ready(self) -> bool:
        """Whether any lane takes work."""
        return num_ready(self.pulses) > 0

    @property
    def is_live(self) -> bool:
        """False once no lane has been ready for so long that only a new process can help."""
        since = unwell_since(self.pulses)
        return since is None or self._clock() - since <= self._care.dead_limit_s

    def lane_states(self) -> Mapping[str, int]:
        """How many lanes are in each state."""
        states = [pulse.state for pulse in self.pulses]
        return {state.value: states.count(state) for state in LaneState}

    def done_in_s(
        self, cost: int, priority: int, flow: str = "", kind: Kind | None = None
    ) -> float:
        """Seconds that new work takes at the least until it is done, by measured costs.

        Args:
            cost: In patches, or what counts like them.
            priority: What is ahead of it depends on its level,
            flow: and on what its own flow has waiting.
            kind: Of all its items, where they are of one.
        """
        pulses = [pulse for pulse in self.pulses if pulse.state is LaneState.READY]
        if not pulses:
            return 0.0
        return self._wait_s(pulses, priority, flow) + self.costs.least_s(cost, len(pulses), kind)

    def _wait_s(self, pulses: Sequence[Pulse], priority: int, flow: str) -> float:
        """Seconds until one of the lanes could begin it."""
        running_s = [pulse.remaining_s for pulse in pulses]
        ahead = self.queue.ahead_of(priority, flow)
        ahead_s = sum(count * self.costs.item_s(bucket) for bucket, count in ahead.items())
        if ahead_s == 0:
            return min(running_s)
        return max(min(running_s), (sum(running_s) + ahead_s) / len(pulses))

    def stop(self, timeout_s: float) -> bool:
        """Refuse what waits and let running batches finish; after the time-out answer them too.

        Returns:
            Whether all lanes have ended.
        """
        self.queue.close()
        for worker in self.workers:
            worker.stop()
        until = time.monotonic() + timeout_s
        threads = [worker.thread for worker in self.workers if worker.thread.ident is not None]
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))
        if self._stage:
            self._stage.join(max(0.0, until - time.monotonic()))
        for batch in [worker.batch for worker in self.workers]:
            for entry in batch.entries if batch else ():
                settle(entry.future, error=Unavailable("The server stopped before the answer."))
        return not any(thread.is_alive() for thread in threads)

    def _on_death(self) -> None:
        """Nobody is left to compute what waits once the last lane is dead."""
        if all(pulse.state is LaneState.DEAD for pulse in self.pulses):
            self.queue.close(device_unhealthy)
