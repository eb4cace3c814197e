"""Dynamic batching: lanes that take batches from one queue, resolve their items, and stay sound.

A failed batch may be at fault itself, so its lane runs a trial batch, a synthetic item. A lane
whose trial batch fails twice in a row is dead. An idle lane runs a trial batch regularly.

A lane's thread writes its state, any thread reads it. Times are monotonic seconds.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Final

from model.runtime.base import Interrupted, is_out_of_memory
from service.call import Clock
from service.errors import (
    DEVICE_RETRY_S,
    InternalError,
    ServiceError,
    Unavailable,
    device_unhealthy,
)
from service.lanes.batch_queue import BatchQueue
from service.lanes.lane import Lane, collate
from service.lanes.work import Batch, BatchLimits, Completed, Outputs
from service.machine import work_in_background
from service.monitoring.metrics import Metrics

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


LOST: Final = frozenset({LaneState.HUNG, LaneState.DEAD})


class Batcher:
    """One model's queue and lanes. `queue.put` submits items, from any thread."""

    def __init__(
        self,
        lanes: Sequence[Lane],
        *,
        limits: BatchLimits,
        metrics: Metrics,
        health: HealthLimits | None = None,
        split_evenly: bool = False,
        clock: Clock = time.monotonic,
    ) -> None:
        """Make one worker for each lane; see `BatchQueue` for the limits and `split_evenly`."""
        self.queue = BatchQueue(limits, metrics, clock, split_evenly=split_evenly)
        self.metrics, self.clock = metrics, clock
        self.health = health or HealthLimits()
        self.workers = [LaneWorker(lane, self) for lane in lanes]
        self._lock = threading.Lock()
        self._totals: dict[int, tuple[int, float]] = {}
        self._patch_s: float | None = None  # moving average; None before the first image

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
        return num_ready / self._patch_s if self._patch_s else None

    def lane_states(self) -> Mapping[str, int]:
        """Number of lanes in each state."""
        states = [worker.state for worker in self.workers]
        return {state.value: states.count(state) for state in LaneState}

    def observe(self, num_items: int, seconds: float, *, num_patches: int) -> None:
        """Count a successful batch; one of texts has no patches."""
        with self._lock:
            count, total_s = self._totals.get(num_items, (0, 0.0))
            self._totals[num_items] = count + 1, total_s + seconds
            if num_patches:
                now_s = seconds / num_patches
                known_s = now_s if self._patch_s is None else self._patch_s
                self._patch_s = known_s + NEW_SHARE * (now_s - known_s)

    def totals(self) -> Mapping[int, tuple[int, float]]:
        """Number of successful batches and their total seconds, by number of items."""
        with self._lock:
            return dict(sorted(self._totals.items()))

    def stop(self, timeout_s: float) -> bool:
        """Fail waiting items and let running batches finish; after the time-out fail those too.

        Returns:
            Whether all lanes have ended.
        """
        self.queue.close()
        for worker in self.workers:
            worker.stopping.set()
        until = time.monotonic() + timeout_s
        threads = [worker.thread for worker in self.workers if worker.thread.ident is not None]
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))
        for batch in [worker.batch for worker in self.workers]:
            for item in batch.items if batch else ():
                item.future.settle(error=Unavailable("The server stopped before the answer."))
        return not any(thread.is_alive() for thread in threads)

    def close_if_all_dead(self) -> None:
        """Fail what waits once no lane is left."""
        if all(worker.state is LaneState.DEAD for worker in self.workers):
            self.queue.close(device_unhealthy)


class LaneWorker:
    """One lane's thread and health.

    Args:
        lane: Used by this thread only, except for `interrupt`.
        batcher: Shares queue, limits and counts with the other lanes of the model.
    """

    def __init__(self, lane: Lane, batcher: Batcher) -> None:
        self.batch: Batch | None = None
        self.thread = threading.Thread(target=self._work, name="lane", daemon=True)
        self.stopping = threading.Event()
        self.pause: Callable[[float], bool] = self.stopping.wait
        self._state = LaneState.READY
        self._began: float | None = None
        self._interval_s = batcher.health.trial_interval_s
        self._lane, self._batcher = lane, batcher
        # Guards `batch`, so that an interrupt never hits the batch after the abandoned one.
        self._batch_lock = threading.Lock()

    @property
    def state(self) -> LaneState:
        """Health now."""
        began, batcher = self._began, self._batcher
        if began is not None and batcher.clock() > began + batcher.health.hang_limit_s:
            return LaneState.HUNG
        return self._state

    def run(self, batch: Batch) -> bool:
        """Compute a batch and resolve its items.

        Returns:
            Whether it succeeded or was interrupted; False if it failed.
        """
        batcher, num_items = self._batcher, len(batch.items)
        num_patches = batch.cost if batch.bucket.is_image else 0
        self.batch = batch
        self._began = started = batcher.clock()
        for item in batch.items:
            item.future.on_left = partial(self._interrupt_if_abandoned, batch)
        self._interrupt_if_abandoned(batch)  # callers may have left before `on_left` was set
        failure = self._compute(batch)
        with self._batch_lock:
            self.batch = None
        del batch, item  # see `_compute`
        self._began = None
        if failure is None:
            batcher.observe(num_items, batcher.clock() - started, num_patches=num_patches)
        elif issubclass(failure, Interrupted):
            batcher.queue.abandoned.inc("interrupted", num_items)
        else:
            return False
        return True

    def _compute(self, batch: Batch) -> type[Exception] | None:
        """Compute a batch and resolve every item; returns the kind of error if it failed."""
        batcher, num_items = self._batcher, len(batch.items)
        try:
            batcher.metrics.observe_batch(batch.bucket.kind, num_items, batch.cost)
            results = self._outputs_of(batch)
            if len(results) != num_items:
                raise RuntimeError(f"{len(results)} results for {num_items} items")
        except Exception as cause:
            if not isinstance(cause, Interrupted):
                # Each request logs the cause with its own id.
                logger.error("a batch failed", extra={"fields": {"bucket": batch.bucket.label}})
            for item in batch.items:
                error = _item_error(cause)
                error.__cause__ = cause
                item.future.settle(error=error)
            # The cause leads to this frame by its traceback, and the items lead to the cause.
            # Without the cycle the images are freed now, and not at the next garbage collection.
            del batch, item, error
            return type(cause)
        ended = batcher.clock()
        for item, outputs in zip(batch.items, results, strict=True):
            queue_s, run_s = batch.taken - item.enqueued, ended - batch.taken
            done = Completed(outputs=outputs, queue_s=queue_s, run_s=run_s, ended=ended)
            item.future.settle(done)
        return None

    def _outputs_of(self, batch: Batch) -> Sequence[Outputs]:
        """Run a batch; item by item if it needs too much memory."""
        bucket, patch_outputs, num_items = batch.bucket, batch.patch_outputs, len(batch.items)
        inputs = collate(bucket, [item.payload for item in batch.items])
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
        for i in range(num_items):
            alone = tuple(array[i : i + 1] for array in inputs)
            results += self._lane.run(bucket, alone, patch_outputs)
        return results

    def _interrupt_if_abandoned(self, batch: Batch) -> None:
        """Stop the batch if every caller has left. Called from any thread."""
        if batch.is_abandoned:
            with self._batch_lock:
                if self.batch is batch:
                    self._lane.interrupt()

    def is_sound(self) -> bool:
        """Run a trial batch, and a second one if it fails; if that fails too, the lane is dead."""
        if self._try() or (not self.pause(self._batcher.health.retry_s) and self._try()):
            return True
        if not self.stopping.is_set():
            logger.error("a lane is dead; the other lanes keep serving")
        self._state = LaneState.DEAD
        self._batcher.close_if_all_dead()
        return False

    def _try(self) -> bool:
        self._began = began = self._batcher.clock()
        try:
            self._lane.run_trial()
        except Exception:
            self._state = LaneState.FAILING
            logger.exception("a lane's trial batch failed")
            return False
        else:
            self._state = LaneState.READY
            seconds = self._batcher.clock() - began
            self._interval_s = max(self._batcher.health.trial_interval_s, seconds / TRIAL_PART)
            return True
        finally:
            self._began = None

    def _work(self) -> None:
        work_in_background()
        queue = self._batcher.queue
        while True:
            batch = queue.take(self._interval_s)
            if batch is None and queue.is_closed:
                return
            is_done = batch is not None and self.run(batch)
            del batch  # an idle lane would hold the last images and their outputs
            if not is_done and not self.is_sound():
                return


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
