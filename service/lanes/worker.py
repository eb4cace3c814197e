"""A lane's worker thread: takes batches, resolves their items, probes and reloads its runtime.

A failed batch may be at fault itself, so the lane probes its runtime with a synthetic item. Only if
the probe fails too, the runtime is loaded again, a bounded number of times with growing pauses.

The worker's thread writes the lane's health, any thread reads it. Times are monotonic seconds.
"""

import logging
import math
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Final, Protocol

from model.graphs import PatchOutput
from model.runtime.base import Interrupted, is_out_of_memory
from service.admission import UNHEALTHY_RETRY_S
from service.call import Clock
from service.errors import InternalError, ServiceError, Unavailable
from service.lanes.batch_queue import BatchQueue
from service.lanes.lane import Inputs, collate, take_rows
from service.lanes.latency_model import LatencyModel
from service.lanes.work import Batch, Bucket, Completed, Outputs
from service.machine import work_in_background
from service.monitoring.metrics import Metrics
from service.tracing import NO_BATCH, BatchTrace, begin_batch

# A batch is hung when it takes this many times longer than its latency model predicts.
HANG_FACTOR: Final = 10.0
# Probes take at most this share of an idle lane's time, even with a slow model.
PROBE_SHARE: Final = 0.02

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthLimits:
    """Limits of health checks and repairs.

    Attributes:
        probe_interval_s: An idle lane probes its runtime after this time.
        hang_limit_s: A longer batch counts as hung, unless the latency model predicts more.
        dead_limit_s: With no healthy lane for this long, the process should be restarted.
        reload_pauses_s: Pause before each attempt to reload the runtime; after the last failed
            attempt the lane is dead.
    """

    probe_interval_s: float = math.inf
    hang_limit_s: float = 30.0
    dead_limit_s: float = 60.0
    reload_pauses_s: tuple[float, ...] = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0)


class LaneState(Enum):
    """Health of a lane."""

    READY = "ready"
    HUNG = "hung"
    REPAIR = "repair"
    DEAD = "dead"


@dataclass(slots=True)
class _Run:
    started: float
    expected_s: float
    limit_s: float


class LaneHealth:
    """Health of one lane: its running batch, and since when it has been unhealthy."""

    def __init__(self, clock: Clock, hang_limit_s: float) -> None:
        self._clock = clock
        self._hang_limit_s = hang_limit_s
        self._run: _Run | None = None
        self._failed_since: float | None = None
        self._is_dead = False

    def run_started(self, expected_s: float) -> None:
        """A batch or a probe starts."""
        limit_s = max(self._hang_limit_s, HANG_FACTOR * expected_s)
        self._run = _Run(self._clock(), expected_s, limit_s)

    def run_succeeded(self) -> None:
        """The run succeeded: the lane is healthy."""
        self._run = None
        self._failed_since = None

    def run_failed(self) -> None:
        """The run failed, because of the batch or of the runtime: health stays as it was."""
        self._run = None

    def mark_unhealthy(self) -> None:
        """The runtime does not compute; lasts until a run succeeds."""
        self._run = None
        if self._failed_since is None:
            self._failed_since = self._clock()

    def mark_dead(self) -> None:
        """The runtime cannot be repaired."""
        self.mark_unhealthy()
        self._is_dead = True

    @property
    def is_ready(self) -> bool:
        """Whether the lane takes work."""
        return self.idle_in_s is not None

    @property
    def state(self) -> LaneState:
        """Health now."""
        if self._is_dead:
            return LaneState.DEAD
        if self._hung_since() is not None:
            return LaneState.HUNG
        return LaneState.READY if self._failed_since is None else LaneState.REPAIR

    @property
    def unhealthy_since(self) -> float | None:
        """None while the lane is ready."""
        return self._failed_since if self._failed_since is not None else self._hung_since()

    @property
    def idle_in_s(self) -> float | None:
        """Expected seconds until the lane is idle, 0 if it is late; None while it is unhealthy."""
        if self._failed_since is not None:  # also if it is dead
            return None
        run = self._run
        if run is None:
            return 0.0
        now = self._clock()
        return (
            None
            if now > run.started + run.limit_s
            else max(0.0, run.started + run.expected_s - now)
        )

    def _hung_since(self) -> float | None:
        run = self._run
        if run is None or self._clock() <= run.started + run.limit_s:
            return None
        return run.started + run.limit_s


def unhealthy_since(lanes: Sequence[LaneHealth]) -> float | None:
    """When the last lane became unhealthy; None while one is ready."""
    times = [health.unhealthy_since for health in lanes]
    known = [time for time in times if time is not None]
    return max(known) if known and len(known) == len(times) else None


def _item_error(cause: Exception) -> ServiceError:
    """Error of an item whose batch failed."""
    if is_out_of_memory(cause):
        return Unavailable(
            "The device has too little free memory for this item: try again, or send smaller "
            "images.",
            code="out_of_memory",
            retry_after_s=UNHEALTHY_RETRY_S,
        )
    return InternalError("The batch of this item failed.")


class BatchCounts:
    """Number and total duration of a model's batches, by size. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals: dict[int, tuple[int, float]] = {}

    def observe(self, num_items: int, seconds: float) -> None:
        """Count a successful batch."""
        with self._lock:
            count, total_s = self._totals.get(num_items, (0, 0.0))
            self._totals[num_items] = count + 1, total_s + seconds

    def totals(self) -> Mapping[int, tuple[int, float]]:
        """Number of batches and total seconds, by number of items."""
        with self._lock:
            return dict(sorted(self._totals.items()))


class LaneRunner(Protocol):
    """What a worker runs; see `service.lanes.lane.Lane`."""

    probe_bucket: Bucket

    def run(
        self,
        bucket: Bucket,
        inputs: Inputs,
        patch_outputs: Collection[PatchOutput],
    ) -> Sequence[Outputs]:
        """Compute one batch."""

    def probe(self) -> None:
        """Compute one synthetic item of `probe_bucket` and validate the result."""

    def reload(self) -> None:
        """Load the runtime again."""

    def interrupt(self) -> None:
        """Stop the running batch, from another thread; `run` raises `Interrupted`."""


class ResultCountError(RuntimeError):
    """A runner returned more or fewer results than items."""


def collate_batch(batch: Batch) -> Inputs:
    """Arrays of a batch."""
    return collate(batch.bucket, [entry.item.payload for entry in batch.entries])


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneContext:
    """Objects that the lanes of one model share."""

    queue: BatchQueue
    latency: LatencyModel
    metrics: Metrics
    limits: HealthLimits
    clock: Clock
    counts: BatchCounts = field(default_factory=BatchCounts)
    inputs_of: Callable[[Batch], Inputs] = collate_batch


class LaneWorker:
    """One lane's thread and health.

    Args:
        lane: Used by this thread only, except for `interrupt`.
        shared: Shared with the other lanes of the model.
        index: For the thread's name.
        on_dead: Called once, in the lane's thread, when the lane is dead.
    """

    def __init__(
        self, lane: LaneRunner, shared: LaneContext, index: int, on_dead: Callable[[], None]
    ) -> None:
        self.health = LaneHealth(shared.clock, shared.limits.hang_limit_s)
        self.batch: Batch | None = None
        self.thread = threading.Thread(target=self._work, name=f"lane-{index}", daemon=True)
        self._lane = lane
        self._shared = shared
        self._on_dead = on_dead
        # Guards `batch`, so that an interrupt never hits the batch after the abandoned one.
        self._batch_lock = threading.Lock()
        self._stopping = threading.Event()
        self.pause: Callable[[float], bool] = self._stopping.wait

    def stop(self) -> None:
        """Start no further repair; the thread ends once the queue is closed."""
        self._stopping.set()

    def run(self, batch: Batch) -> bool:
        """Compute a batch and resolve its items.

        Returns:
            Whether it succeeded or was interrupted; False if it failed.
        """
        shared, bucket, num_items = self._shared, batch.bucket, len(batch.entries)
        self.batch = batch
        started = shared.clock()
        self.health.run_started(shared.latency.batch_s(bucket, num_items))
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
        if failure is not None and issubclass(failure, Interrupted):
            shared.queue.abandoned.inc("interrupted", num_items)
            self.health.run_succeeded()
            return True
        if failure is not None:
            self.health.run_failed()
            return False
        self.health.run_succeeded()
        seconds = shared.clock() - started
        shared.latency.observe(bucket, num_items, seconds)
        shared.counts.observe(num_items, seconds)
        return True

    def _compute(self, batch: Batch) -> type[Exception] | None:
        """Compute a batch and resolve every item; returns the kind of error if it failed."""
        shared = self._shared
        trace: BatchTrace = NO_BATCH
        try:
            shared.metrics.observe_batch(batch.bucket.kind, len(batch.entries), batch.cost)
            if any([entry.item.trace.is_recording for entry in batch.entries]):
                trace = begin_batch(
                    [entry.item.trace for entry in batch.entries],
                    {"bucket": batch.bucket.label, "items": len(batch.entries), "cost": batch.cost},
                    batch.taken,
                )
            results = self._outputs_of(batch)
            if len(results) != len(batch.entries):
                raise ResultCountError(f"{len(results)} results for {len(batch.entries)} items")
        except Exception as cause:
            trace.end(shared.clock(), type(cause).__name__)
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
        # Before the items are resolved: a finished request adds nothing to its trace.
        trace.end(ended)
        for entry, outputs in zip(batch.entries, results, strict=True):
            queue_s, run_s = batch.taken - entry.enqueued, ended - batch.taken
            done = Completed(outputs=outputs, queue_s=queue_s, run_s=run_s, batch=trace)
            entry.future.settle(done)
        return None

    def _outputs_of(self, batch: Batch) -> Sequence[Outputs]:
        """Run a batch; item by item if it needs too much memory."""
        inputs, num_items = self._shared.inputs_of(batch), len(batch.entries)
        bucket, patch_outputs = batch.bucket, batch.patch_outputs
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

    def probe(self) -> bool:
        """Compute a synthetic item; returns whether it succeeded."""
        shared, bucket = self._shared, self._lane.probe_bucket
        started = shared.clock()
        self.health.run_started(shared.latency.batch_s(bucket, 1))
        try:
            self._lane.probe()
        except Exception:
            self.health.mark_unhealthy()
            logger.exception("a lane's probe failed")
            return False
        self.health.run_succeeded()
        shared.latency.observe(bucket, 1, shared.clock() - started)
        return True

    def repair(self) -> bool:
        """Reload the runtime until a probe succeeds; False if no attempt is left."""
        for pause_s in self._shared.limits.reload_pauses_s:
            if self.pause(pause_s) or self._stopping.is_set():
                return False
            logger.warning("a lane reloads its runtime")
            try:
                self._lane.reload()
            except Exception:
                logger.exception("a lane's runtime could not be loaded")
            else:
                if self.probe():
                    self._shared.metrics.lane_rebuilds.inc()
                    return True
        logger.error("a lane is dead; the other lanes keep serving")
        return False

    @property
    def probe_interval_s(self) -> float:
        """How long the lane waits for work before it probes its runtime."""
        probe_s = self._shared.latency.batch_s(self._lane.probe_bucket, 1)
        return max(self._shared.limits.probe_interval_s, probe_s / PROBE_SHARE)

    def _work(self) -> None:
        work_in_background()
        queue = self._shared.queue
        interval_s = self.probe_interval_s
        while True:
            batch = queue.wait_and_take(interval_s)
            if batch is None and queue.is_closed:
                return
            is_done = batch is not None and self.run(batch)
            del batch  # an idle lane would hold the last images and their outputs
            if is_done:
                continue
            if not self.probe() and not self.repair():
                self.health.mark_dead()
                self._on_dead()
                return
            interval_s = self.probe_interval_s
