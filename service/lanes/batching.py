"""Dynamic batching: a queue for each bucket in front of lanes that never wait while work is due."""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from service.admission import device_unhealthy
from service.call import Clock
from service.errors import Unavailable
from service.lanes.batch_queue import BatchQueue, BatchRules
from service.lanes.lane import Inputs, collate, take_rows
from service.lanes.latency_model import LatencyModel
from service.lanes.work import Batch, Kind
from service.lanes.worker import (
    BatchCounts,
    HealthLimits,
    LaneContext,
    LaneRunner,
    LaneState,
    LaneWorker,
    collate_batch,
    unhealthy_since,
)
from service.monitoring.metrics import Metrics

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Prefetched:
    inputs: Inputs
    row_of: Mapping[int, int]


class BatchPrefetcher:
    """Collates the next batch in a thread of its own while the lanes are busy.

    The items stay in the queue: it collates a copy of what would be the next batch now. An idle
    lane forms its batch as usual and takes the copied rows that it can use. So no lane waits for
    the prefetcher, urgent items still overtake, and cancelled items are still dropped.

    It pays off where a device would be idle while arrays are copied. A lane that computes on the
    CPU copies itself: another thread would only compete with it.
    """

    def __init__(self, queue: BatchQueue) -> None:
        self._queue = queue
        self._prefetched: _Prefetched | None = None
        self._thread = threading.Thread(target=self._work, name="prefetcher", daemon=True)

    def start(self) -> None:
        """Start the thread; it ends when the queue is closed."""
        self._thread.start()

    def join(self, timeout_s: float) -> None:
        """Wait until the thread has ended, or for the time-out."""
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def inputs_of(self, batch: Batch) -> Inputs:
        """Arrays of a batch: the prefetched rows if they contain all items. From any lane."""
        prefetched = self._prefetched
        if prefetched is not None:
            rows = [prefetched.row_of.get(entry.number) for entry in batch.entries]
            known = [row for row in rows if row is not None]
            if len(known) == len(rows):
                self._prefetched = None
                return take_rows(prefetched.inputs, known)
        return collate_batch(batch)

    def prefetch(self) -> bool:
        """Wait until the next batch differs from the prefetched one, and collate it.

        Returns:
            False once the queue is closed.
        """
        prefetched = self._prefetched
        known = () if prefetched is None else tuple(prefetched.row_of)
        entries = self._queue.wait_and_peek(known)
        if entries is None:
            self._prefetched = None
            return False
        inputs = collate(entries[0].item.bucket, [entry.item.payload for entry in entries])
        self._prefetched = _Prefetched(inputs, {entry.number: i for i, entry in enumerate(entries)})
        return True

    def _work(self) -> None:
        try:
            while self.prefetch():
                pass
        except Exception:
            # From now on each lane collates its batches itself.
            logger.exception("prefetching of batches failed and is off")
            self._prefetched = None


class Batcher:
    """One model's queue and lanes. `queue.put` submits items, from any thread."""

    def __init__(
        self,
        lanes: Sequence[LaneRunner],
        *,
        rules: BatchRules,
        metrics: Metrics,
        limits: HealthLimits | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self.latency = LatencyModel(rules.limits, clock)
        self.queue = BatchQueue(rules, metrics, clock)
        self.counts = BatchCounts()
        self._clock = clock
        self._limits = limits or HealthLimits()
        self._prefetcher = BatchPrefetcher(self.queue) if rules.prepare_ahead else None
        shared = LaneContext(
            queue=self.queue,
            latency=self.latency,
            metrics=metrics,
            limits=self._limits,
            clock=clock,
            counts=self.counts,
            inputs_of=self._prefetcher.inputs_of if self._prefetcher else collate_batch,
        )
        self.workers = [
            LaneWorker(lane, shared, index, self._close_if_all_dead)
            for index, lane in enumerate(lanes)
        ]

    def start(self) -> None:
        """Start the threads."""
        if self._prefetcher:
            self._prefetcher.start()
        for worker in self.workers:
            worker.thread.start()

    def offer(self, job: Callable[[], None]) -> bool:
        """Hand a short job that puts an item to an idle lane; False if there is none.

        Lanes of a device have another thread to prepare for them: their own keeps the device busy.
        """
        return self._prefetcher is None and self.queue.offer(job)

    @property
    def is_ready(self) -> bool:
        """Whether any lane is ready."""
        return any(worker.health.is_ready for worker in self.workers)

    @property
    def is_live(self) -> bool:
        """False once no lane has been ready for so long that only a restart can help."""
        since = unhealthy_since([worker.health for worker in self.workers])
        return since is None or self._clock() - since <= self._limits.dead_limit_s

    def lane_states(self) -> Mapping[str, int]:
        """Number of lanes in each state."""
        states = [worker.health.state for worker in self.workers]
        return {state.value: states.count(state) for state in LaneState}

    def done_in_s(
        self, cost: int, priority: int, flow: str = "", kind: Kind | None = None
    ) -> float | None:
        """Least time in seconds until new work is done, by the measured latencies.

        None if no lane is ready.

        Args:
            cost: In patches or tokens.
            priority: Decides how many waiting items are served before it.
            flow: The same, by fair share.
            kind: Kind of its items, if all are of one kind.
        """
        idle_in_s = [worker.health.idle_in_s for worker in self.workers]
        running_s = [seconds for seconds in idle_in_s if seconds is not None]
        if not running_s:
            return None
        wait_s = min(running_s)
        ahead = self.queue.ahead_of(priority, flow)
        ahead_s = sum(count * self.latency.item_s(bucket) for bucket, count in ahead.items())
        if ahead_s > 0:
            wait_s = max(wait_s, (sum(running_s) + ahead_s) / len(running_s))
        return wait_s + self.latency.least_s(cost, len(running_s), kind)

    def stop(self, timeout_s: float) -> bool:
        """Fail waiting items and let running batches finish; after the time-out fail those too.

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
        if self._prefetcher:
            self._prefetcher.join(max(0.0, until - time.monotonic()))
        for batch in [worker.batch for worker in self.workers]:
            for entry in batch.entries if batch else ():
                entry.future.settle(error=Unavailable("The server stopped before the answer."))
        return not any(thread.is_alive() for thread in threads)

    def _close_if_all_dead(self) -> None:
        if all(worker.health.state is LaneState.DEAD for worker in self.workers):
            self.queue.close(device_unhealthy)
