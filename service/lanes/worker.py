"""A lane's worker thread: takes batches, resolves their items, and tries its runtime.

A failed batch may be at fault itself, so the lane runs a trial batch, a synthetic item. A lane
whose trial batch fails twice in a row is dead. An idle lane runs a trial batch regularly.

The worker's thread writes the lane's state, any thread reads it. Times are monotonic seconds.
"""

import logging
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Final

from model.runtime.base import Interrupted, is_out_of_memory
from service.call import Clock
from service.errors import DEVICE_RETRY_S, InternalError, ServiceError, Unavailable
from service.lanes.batch_queue import BatchQueue
from service.lanes.lane import Lane, collate, take_rows
from service.lanes.work import Batch, Completed, Outputs
from service.machine import work_in_background
from service.monitoring.metrics import Metrics
from service.tracing import BatchRun

# Trial batches take at most this part of an idle lane's time, even with a slow model.
TRIAL_PART: Final = 0.02

# What a new batch counts in the moving average of the time for a patch.
NEW_SHARE: Final = 0.1

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthLimits:
    """Limits of health checks.

    Attributes:
        trial_interval_s: An idle lane runs a trial batch after this time.
        hang_limit_s: A longer batch counts as hung.
        retry_s: Pause before the second trial batch.
    """

    trial_interval_s: float = math.inf
    hang_limit_s: float = 60.0
    retry_s: float = 1.0


class LaneState(Enum):
    """Health of a lane. A failing one has failed a trial batch, and runs another."""

    READY = "ready"
    FAILING = "failing"
    HUNG = "hung"
    DEAD = "dead"


def _item_error(cause: Exception) -> ServiceError:
    """Error of an item whose batch failed."""
    if is_out_of_memory(cause):
        return Unavailable(
            "The device has too little free memory for this item: try again, or send smaller "
            "images.",
            code="out_of_memory",
            retry_after_s=DEVICE_RETRY_S,
        )
    return InternalError("The batch of this item failed.")


class BatchCounts:
    """Number and total duration of a model's batches, by size. Thread-safe.

    Attributes:
        patch_s: Seconds of a lane for a patch, as a moving average; None before the first image.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals: dict[int, tuple[int, float]] = {}
        self.patch_s: float | None = None

    def observe(self, num_items: int, seconds: float, *, num_patches: int = 0) -> None:
        """Count a successful batch; one of texts has no patches."""
        with self._lock:
            count, total_s = self._totals.get(num_items, (0, 0.0))
            self._totals[num_items] = count + 1, total_s + seconds
            if num_patches:
                now_s = seconds / num_patches
                known_s = now_s if self.patch_s is None else self.patch_s
                self.patch_s = known_s + NEW_SHARE * (now_s - known_s)

    def totals(self) -> Mapping[int, tuple[int, float]]:
        """Number of batches and total seconds, by number of items."""
        with self._lock:
            return dict(sorted(self._totals.items()))


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneContext:
    """Objects that the lanes of one model share."""

    queue: BatchQueue
    metrics: Metrics
    limits: HealthLimits
    clock: Clock
    counts: BatchCounts = field(default_factory=BatchCounts)


class LaneWorker:
    """One lane's thread and health.

    Args:
        lane: Used by this thread only, except for `interrupt`.
        shared: Shared with the other lanes of the model.
        index: For the thread's name.
        on_dead: Called once, in the lane's thread, when the lane is dead.
    """

    def __init__(
        self, lane: Lane, shared: LaneContext, index: int, on_dead: Callable[[], None]
    ) -> None:
        self.batch: Batch | None = None
        self.thread = threading.Thread(target=self._work, name=f"lane-{index}", daemon=True)
        self._state = LaneState.READY
        self._began: float | None = None
        self._interval_s = shared.limits.trial_interval_s
        self._lane = lane
        self._shared = shared
        self._on_dead = on_dead
        # Guards `batch`, so that an interrupt never hits the batch after the abandoned one.
        self._batch_lock = threading.Lock()
        self._stopping = threading.Event()
        self.pause: Callable[[float], bool] = self._stopping.wait

    @property
    def state(self) -> LaneState:
        """Health now."""
        began, shared = self._began, self._shared
        if began is not None and shared.clock() > began + shared.limits.hang_limit_s:
            return LaneState.HUNG
        return self._state

    def stop(self) -> None:
        """Start no further trial; the thread ends once the queue is closed."""
        self._stopping.set()

    def run(self, batch: Batch) -> bool:
        """Compute a batch and resolve its items.

        Returns:
            Whether it succeeded or was interrupted; False if it failed.
        """
        shared, num_items = self._shared, len(batch.entries)
        num_patches = batch.cost if batch.bucket.is_image else 0
        self.batch = batch
        self._began = started = shared.clock()
        has_left = False
        for entry in batch.entries:
            entry.future.on_left = partial(self._interrupt_if_abandoned, batch)
            has_left |= entry.future.is_abandoned
        if has_left:
            self._interrupt_if_abandoned(batch)
        failure = self._compute(batch)
        with self._batch_lock:
            self.batch = None
        del batch, entry  # see `_compute`
        self._began = None
        if failure is None:
            seconds = shared.clock() - started
            shared.counts.observe(num_items, seconds, num_patches=num_patches)
        elif issubclass(failure, Interrupted):
            shared.queue.abandoned.inc("interrupted", num_items)
        else:
            return False
        return True

    def _compute(self, batch: Batch) -> type[Exception] | None:
        """Compute a batch and resolve every item; returns the kind of error if it failed."""
        shared = self._shared
        num_items = len(batch.entries)
        try:
            shared.metrics.observe_batch(batch.bucket.kind, num_items, batch.cost)
            results = self._outputs_of(batch)
            if len(results) != num_items:
                raise RuntimeError(f"{len(results)} results for {num_items} items")
        except Exception as cause:
            if not isinstance(cause, Interrupted):
                # Each request logs the cause with its own id.
                fields = {"bucket": batch.bucket.label}
                logger.error("a batch failed", extra={"fields": fields})
            for entry in batch.entries:
                error = _item_error(cause)
                error.__cause__ = cause
                entry.future.settle(error=error)
            # The cause leads to this frame by its traceback, and the items lead to the cause.
            # Without the cycle the images are freed now, and not at the next garbage collection.
            del batch, entry, error
            return type(cause)
        ended = shared.clock()
        run = BatchRun(bucket=batch.bucket.label, num_items=num_items, cost=batch.cost, ended=ended)
        for entry, outputs in zip(batch.entries, results, strict=True):
            queue_s, run_s = batch.taken - entry.enqueued, ended - batch.taken
            done = Completed(outputs=outputs, queue_s=queue_s, run_s=run_s, batch=run)
            entry.future.settle(done)
        return None

    def _outputs_of(self, batch: Batch) -> Sequence[Outputs]:
        """Run a batch; item by item if it needs too much memory."""
        bucket, patch_outputs, num_items = batch.bucket, batch.patch_outputs, len(batch.entries)
        inputs = collate(bucket, [entry.item.payload for entry in batch.entries])
        del batch  # see `_compute`
        try:
            return self._lane.run(bucket, inputs, patch_outputs)
        except Exception as error:
            if num_items == 1 or not is_out_of_memory(error):
                raise
            fields = {"bucket": bucket.label, "items": num_items, "error": str(error)}
        logger.warning(
            "too little memory for a batch: its items run alone", extra={"fields": fields}
        )
        results: list[Outputs] = []
        for index in range(num_items):
            results += self._lane.run(bucket, take_rows(inputs, [index]), patch_outputs)
        return results

    def _interrupt_if_abandoned(self, batch: Batch) -> None:
        """Stop the batch if every caller has left. Called from any thread."""
        if batch.is_abandoned:
            with self._batch_lock:
                if self.batch is batch:
                    self._lane.interrupt()

    def is_sound(self) -> bool:
        """Run a trial batch, and a second one if it fails; if that fails too, the lane is dead."""
        if self._try() or (not self.pause(self._shared.limits.retry_s) and self._try()):
            return True
        if not self._stopping.is_set():
            logger.error("a lane is dead; the other lanes keep serving")
        self._state = LaneState.DEAD
        self._on_dead()
        return False

    def _try(self) -> bool:
        self._began = began = self._shared.clock()
        try:
            self._lane.run_trial()
        except Exception:
            self._state = LaneState.FAILING
            logger.exception("a lane's trial batch failed")
            return False
        else:
            self._state = LaneState.READY
            seconds = self._shared.clock() - began
            self._interval_s = max(self._shared.limits.trial_interval_s, seconds / TRIAL_PART)
            return True
        finally:
            self._began = None

    def _work(self) -> None:
        work_in_background()
        queue = self._shared.queue
        while True:
            batch = queue.wait_and_take(self._interval_s)
            if batch is None and queue.is_closed:
                return
            is_done = batch is not None and self.run(batch)
            del batch  # an idle lane would hold the last images and their outputs
            if not is_done and not self.is_sound():
                return
