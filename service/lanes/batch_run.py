"""One batch on one lane: computed, and every entry of it answered, however it ends."""

import logging
from collections.abc import Callable, Sequence

from model.runtime.base import Interrupted
from service.call import Clock
from service.errors import InternalError
from service.lanes.collation import Inputs, collate
from service.lanes.work import Batch, Bucket, Completed, Outputs, settle
from service.monitoring.observability import Metrics
from service.tracing import NO_BATCH, BatchTrace, begin_batch

Runner = Callable[[Bucket, Inputs], Sequence[Outputs]]
Collate = Callable[[Batch], Inputs]

logger = logging.getLogger(__name__)


class ResultCountError(RuntimeError):
    """A runner broke its contract: as many results as items."""


def collate_batch(batch: Batch) -> Inputs:
    """The arrays of a batch, made now."""
    return collate(batch.bucket, [entry.item.payload for entry in batch.entries])


def run_batch(
    batch: Batch, run: Runner, metrics: Metrics, clock: Clock, *, inputs_of: Collate = collate_batch
) -> Exception | None:
    """Compute a batch and answer every entry.

    Returns:
        Why it failed, where it did.
    """
    trace: BatchTrace = NO_BATCH
    try:
        metrics.observe_batch(batch.bucket.kind, len(batch.entries), batch.cost)
        trace = begin_batch(
            (entry.item.trace for entry in batch.entries),
            {"bucket": batch.bucket.label, "items": len(batch.entries), "cost": batch.cost},
            batch.taken,
        )
        results = run(batch.bucket, inputs_of(batch))
        if len(results) != len(batch.entries):
            raise ResultCountError(f"{len(results)} results for {len(batch.entries)} items")
    except Exception as cause:
        trace.end(clock(), type(cause).__name__)
        if isinstance(cause, Interrupted):
            for entry in batch.entries:
                settle(entry.future, error=_batch_failed(cause))
            return cause
        # Each caller logs the cause under its own request id.
        logger.error("a batch failed", extra={"fields": {"bucket": batch.bucket.label}})
        for entry in batch.entries:
            settle(entry.future, error=_batch_failed(cause))
        return cause
    ended = clock()
    # Before the answers: a request that has its answer tells its trace nothing more.
    trace.end(ended)
    run_s = ended - batch.taken
    for entry, outputs in zip(batch.entries, results, strict=True):
        queue_s = batch.taken - entry.enqueued
        done = Completed(outputs=outputs, queue_s=queue_s, run_s=run_s, batch=trace)
        settle(entry.future, value=done)
    return None


def _batch_failed(cause: Exception) -> InternalError:
    error = InternalError("The batch of this item failed.")
    error.__cause__ = cause
    return error
