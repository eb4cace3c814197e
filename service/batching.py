"""Work-conserving batching: a lane that is free takes what waits at once, and never waits for more.

A lane is one worker thread with a runner of its own. A batch stands alone: a runner that raises, or
that returns another number of results than it was given, fails that batch and nothing else. Nobody
is left without an answer.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from numpy.typing import NDArray

from service.batch_queue import BatchQueue, BatchRules
from service.call import Clock
from service.errors import InternalError, Unavailable
from service.observability import Metrics
from service.tracing import begin_batch
from service.work import Batch, Bucket, Completed, Outputs, WorkItem, settle

Runner = Callable[[Bucket, Sequence[NDArray[Any]]], Sequence[Outputs]]

logger = logging.getLogger(__name__)


class ResultCountError(RuntimeError):
    """A runner broke its contract: as many results as items."""


class Batcher:
    """One queue and its lanes. `submit` may be called from any thread."""

    def __init__(
        self,
        runners: Sequence[Runner],
        *,
        rules: BatchRules,
        metrics: Metrics,
        clock: Clock = time.monotonic,
    ) -> None:
        self.queue = BatchQueue(rules, metrics, clock)
        self._metrics = metrics
        self._clock = clock
        self._running: set[Batch] = set()
        self._lanes = [
            threading.Thread(target=self._work, args=(run,), name=f"lane-{i}", daemon=True)
            for i, run in enumerate(runners)
        ]

    def start(self) -> None:
        """Start the lanes."""
        for lane in self._lanes:
            lane.start()

    def submit(self, items: Sequence[WorkItem]) -> list["Future[Completed]"]:
        """Queue the items of one request; the i-th future answers the i-th item.

        Cancelling a future frees its item if no lane has taken it yet.

        Raises:
            Unavailable: The batcher is stopping.
        """
        return self.queue.put(items)

    def count_abandoned(self, num_items: int) -> None:
        """Count items whose caller left before they were queued."""
        self._metrics.abandoned.labels("cancelled").inc(num_items)

    def stop(self, timeout_s: float) -> bool:
        """Refuse what waits and let running batches finish; after the time-out answer them too.

        Returns:
            Whether all lanes have ended.
        """
        self.queue.close()
        until = time.monotonic() + timeout_s
        for lane in self._lanes:
            lane.join(max(0.0, until - time.monotonic()))
        for batch in tuple(self._running):
            for entry in batch.entries:
                settle(entry.future, error=Unavailable("The server stopped before the answer."))
        return not any(lane.is_alive() for lane in self._lanes)

    def run_batch(self, batch: Batch, run: Runner) -> None:
        """Compute one batch and answer every entry of it."""
        self._metrics.observe_batch(batch.bucket.kind, len(batch.entries), batch.cost)
        trace = begin_batch(
            (entry.item.trace for entry in batch.entries),
            {"bucket": batch.bucket.label, "items": len(batch.entries), "cost": batch.cost},
            batch.taken,
        )
        try:
            results = run(batch.bucket, [entry.item.payload for entry in batch.entries])
            if len(results) != len(batch.entries):
                raise ResultCountError(f"{len(results)} results for {len(batch.entries)} items")
        except Exception as cause:
            trace.end(self._clock(), type(cause).__name__)
            # Each caller logs the cause under its own request id.
            logger.error("a batch failed", extra={"fields": {"bucket": batch.bucket.label}})
            for entry in batch.entries:
                settle(entry.future, error=_batch_failed(cause))
            return
        ended = self._clock()
        # Before the answers: a request that has its answer tells its trace nothing more.
        trace.end(ended)
        run_s = ended - batch.taken
        for entry, outputs in zip(batch.entries, results, strict=True):
            queue_s = batch.taken - entry.enqueued
            done = Completed(outputs=outputs, queue_s=queue_s, run_s=run_s, batch=trace)
            settle(entry.future, value=done)

    def _work(self, run: Runner) -> None:
        while (batch := self.queue.wait_and_take()) is not None:
            self._running.add(batch)
            self.run_batch(batch, run)
            self._running.discard(batch)


def _batch_failed(cause: Exception) -> InternalError:
    error = InternalError("The batch of this item failed.")
    error.__cause__ = cause
    return error
