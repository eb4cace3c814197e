"""Dynamic batching: a queue for each bucket in front of lanes that never wait while work is due."""

import time
from collections.abc import Mapping, Sequence

from service.call import Clock
from service.errors import Unavailable, device_unhealthy
from service.lanes.batch_queue import BatchQueue, BatchRules
from service.lanes.lane import Lane
from service.lanes.worker import (
    BatchCounts,
    HealthLimits,
    LaneContext,
    LaneState,
    LaneWorker,
)
from service.monitoring.metrics import Metrics

LOST = frozenset({LaneState.HUNG, LaneState.DEAD})


class Batcher:
    """One model's queue and lanes. `queue.put` submits items, from any thread."""

    def __init__(
        self,
        lanes: Sequence[Lane],
        *,
        rules: BatchRules,
        metrics: Metrics,
        limits: HealthLimits | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self.queue = BatchQueue(rules, metrics, clock)
        self.counts = BatchCounts()
        shared = LaneContext(
            queue=self.queue,
            metrics=metrics,
            limits=limits or HealthLimits(),
            clock=clock,
            counts=self.counts,
        )
        self.workers = [
            LaneWorker(lane, shared, index, self._close_if_all_dead)
            for index, lane in enumerate(lanes)
        ]

    def start(self) -> None:
        """Start the threads."""
        for worker in self.workers:
            worker.thread.start()

    @property
    def is_ready(self) -> bool:
        """Whether any lane takes work."""
        return any(worker.state is LaneState.READY for worker in self.workers)

    @property
    def is_live(self) -> bool:
        """False once all lanes are dead or hang: only a restart of the process helps."""
        return any(worker.state not in LOST for worker in self.workers)

    @property
    def patches_per_s(self) -> float | None:
        """Patches that the lanes that take work compute in a second; None before the first."""
        num_ready = sum(worker.state is LaneState.READY for worker in self.workers)
        patch_s = self.counts.patch_s
        return num_ready / patch_s if patch_s else None

    def lane_states(self) -> Mapping[str, int]:
        """Number of lanes in each state."""
        states = [worker.state for worker in self.workers]
        return {state.value: states.count(state) for state in LaneState}

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
        for batch in [worker.batch for worker in self.workers]:
            for entry in batch.entries if batch else ():
                entry.future.settle(error=Unavailable("The server stopped before the answer."))
        return not any(thread.is_alive() for thread in threads)

    def _close_if_all_dead(self) -> None:
        if all(worker.state is LaneState.DEAD for worker in self.workers):
            self.queue.close(device_unhealthy)
