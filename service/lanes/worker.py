"""A lane: one worker thread with its own runtime, its health and its next batch."""

import logging
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from model.dense_maps import MapTask
from model.runtime.base import Interrupted, Runtime
from service.call import Clock
from service.errors import InternalError, Unavailable
from service.lanes.batch_queue import BatchCounts, BatchQueue
from service.lanes.latency_model import CostBook
from service.lanes.work import Batch, Bucket, Completed, Outputs, settle
from service.monitoring.metrics import Metrics
from service.tracing import NO_BATCH, BatchTrace, begin_batch

# Whether lanes are well: what each runs and since when, and since when it has not been well.
#
# A lane's own thread writes its pulse; any thread reads it. Times are monotonic seconds.

# A batch that takes so many times longer than its curve says is taken for hung.
PATIENCE: Final = 10.0
UNWELL_RETRY_S: Final = 5.0


class LaneState(Enum):
    """How a lane is."""

    READY = "ready"
    HUNG = "hung"
    REPAIR = "repair"
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class _Run:
    began: float
    expected_s: float
    limit_s: float


class Pulse:
    """One lane's."""

    def __init__(self, clock: Clock, hang_limit_s: float) -> None:
        self._clock = clock
        self._hang_limit_s = hang_limit_s
        self._run: _Run | None = None
        self._ailing_since: float | None = None
        self._is_dead = False

    def begin(self, expected_s: float) -> None:
        """The lane begins to compute something."""
        limit_s = max(self._hang_limit_s, PATIENCE * expected_s)
        self._run = _Run(self._clock(), expected_s, limit_s)

    def end(self) -> None:
        """What it computed came out well."""
        self._run = None
        self._ailing_since = None

    def rest(self) -> None:
        """What it computed did not come out, and whose fault that is is not known yet."""
        self._run = None

    def fail(self) -> None:
        """It cannot compute, until something it computes comes out well."""
        self._run = None
        if self._ailing_since is None:
            self._ailing_since = self._clock()

    def die(self) -> None:
        """It is given up."""
        self.fail()
        self._is_dead = True

    @property
    def state(self) -> LaneState:
        """How it is now."""
        if self._is_dead:
            return LaneState.DEAD
        if self._hung_since() is not None:
            return LaneState.HUNG
        return LaneState.READY if self._ailing_since is None else LaneState.REPAIR

    @property
    def unwell_since(self) -> float | None:
        """None where it is ready."""
        return self._ailing_since if self._ailing_since is not None else self._hung_since()

    @property
    def remaining_s(self) -> float:
        """Seconds until it should be free; 0 where it is, or is late."""
        run = self._run
        return 0.0 if run is None else max(0.0, run.began + run.expected_s - self._clock())

    def _hung_since(self) -> float | None:
        run = self._run
        if run is None or self._clock() <= run.began + run.limit_s:
            return None
        return run.began + run.limit_s


def num_ready(pulses: Sequence[Pulse]) -> int:
    """How many lanes take work."""
    return sum(pulse.state is LaneState.READY for pulse in pulses)


def unwell_since(pulses: Sequence[Pulse]) -> float | None:
    """When the last of the lanes stopped being ready; None while one is."""
    times = [pulse.unwell_since for pulse in pulses]
    known = [time for time in times if time is not None]
    return max(known) if known and len(known) == len(times) else None


def device_unhealthy() -> Unavailable:
    """What callers are told while no lane is well."""
    return Unavailable(
        "The device does not answer; try again.", code="unhealthy", retry_after_s=UNWELL_RETRY_S
    )


# Items of one bucket as the arrays that a runtime takes.
#
# Shape legend: B batch, L tokens, H W pixels.

# For images float32 [B, 3, H, W]; for texts token ids and mask, int64 [B, L] each.
Inputs = tuple[NDArray[Any], ...]


def collate(bucket: Bucket, payloads: Sequence[NDArray[Any]]) -> Inputs:
    """Put items together.

    Args:
        bucket: Of all items.
        payloads: float32 [3, H, W] for images; int64 token ids [L] of any L for texts.
    """
    if bucket.is_image:
        return (np.stack(payloads),)
    longest = max(len(row) for row in payloads)
    ids_BL = np.zeros((len(payloads), longest), dtype=np.int64)
    mask_BL = np.zeros_like(ids_BL)
    for i, row in enumerate(payloads):
        ids_BL[i, : len(row)] = row
        mask_BL[i, : len(row)] = 1
    return ids_BL, mask_BL


def take_rows(inputs: Inputs, rows: Sequence[int]) -> Inputs:
    """Some of the items, in this order; the first ones as they lie are not copied."""
    if list(rows) == list(range(len(rows))):
        return tuple(array[: len(rows)] for array in inputs)
    return tuple(array[list(rows)] for array in inputs)


# One batch on one lane: computed, and every entry of it answered, however it ends.

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


# Puts the next batch together while the lanes are busy with theirs.
#
# Nothing leaves the queue for it. What lies ready is a copy of what would be the next batch now;
# the lane that becomes free forms its batch as ever and uses of the copy what it can. So a lane
# never waits for it, the urgent still overtake, and who leaves before the hand-over is not
# computed.
#
# It is worth a thread where a device would be idle meanwhile. A lane that computes on the CPU is
# itself the thread that would copy, and another one would only take turns with it.

STAGING_FAILED: Final = "a batch could not be put together ahead of its time"


@dataclass(frozen=True, slots=True)
class _Staged:
    inputs: Inputs
    row_of: Mapping[int, int]


class Stage:
    """One batch that lies ready. `inputs_of` may be called from any lane."""

    def __init__(self, queue: BatchQueue) -> None:
        self._queue = queue
        self._staged: _Staged | None = None
        self._thread = threading.Thread(target=self._work, name="staging", daemon=True)

    def start(self) -> None:
        """Begin; it ends when the queue is closed."""
        self._thread.start()

    def join(self, timeout_s: float) -> None:
        """Wait for the end, for at most so long."""
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def inputs_of(self, batch: Batch) -> Inputs:
        """The arrays of a batch: those that lie ready where they are all there, else new ones."""
        staged = self._staged
        if staged is not None:
            rows = [staged.row_of.get(entry.number) for entry in batch.entries]
            known = [row for row in rows if row is not None]
            if len(known) == len(rows):
                self._staged = None
                return take_rows(staged.inputs, known)
        return collate_batch(batch)

    def put_together(self) -> bool:
        """Wait until the next batch is another than what lies ready, and make it ready.

        Returns:
            False once the queue is closed.
        """
        staged = self._staged
        entries = self._queue.wait_and_peek(() if staged is None else tuple(staged.row_of))
        if entries is None:
            self._staged = None
            return False
        inputs = collate(entries[0].item.bucket, [entry.item.payload for entry in entries])
        self._staged = _Staged(inputs, {entry.number: i for i, entry in enumerate(entries)})
        return True

    def _work(self) -> None:
        try:
            while self.put_together():
                pass
        except Exception:
            # Lanes put their batches together themselves from now on.
            logger.exception(STAGING_FAILED)
            self._staged = None


# One lane's runtime: batches of equal items in, one set of outputs for each item out.
#
# Shape legend: B batch, L tokens, D width, H W pixels.

TEXT_OUTPUT = "text"


def made_up_items(bucket: Bucket, num_items: int) -> list[NDArray[Any]]:
    """Items that the runtime takes like any others."""
    if bucket.is_image:
        return [np.ones((3, *bucket.shape), np.float32)] * num_items
    return [np.ones(bucket.shape, np.int64)] * num_items


class WarmUpError(RuntimeError):
    """A runtime did not give usable outputs for one of the served shapes."""


class Lane:
    """Runs batches on a runtime of its own; one thread at a time.

    Args:
        load: Makes the runtime, and makes it anew when it no longer computes.
        embed_dim: Width of every embedding.
        probe_bucket: Of the item by which the lane tries itself.
    """

    def __init__(
        self, load: Callable[[], Runtime], *, embed_dim: int, probe_bucket: Bucket
    ) -> None:
        self.probe_bucket = probe_bucket
        self._embed_dim = embed_dim
        self._load = load
        self.runtime = load()

    def run(self, bucket: Bucket, inputs: Inputs) -> list[Outputs]:
        """Compute one batch.

        Args:
            bucket: Of all items.
            inputs: As `collate` makes them.

        Returns:
            For each image its patches and values [N, D], cls1 and cls2 [D]; for each text `text`
            [D]. Not normalised. Of a dense head, for each image its map under the bucket's kind.
        """
        if bucket.kind == "image":
            return self._images(*inputs)
        if bucket.kind == "text":
            return self._texts(*inputs)
        return self._maps(bucket.kind, *inputs)

    def try_out(self, bucket: Bucket, num_items: int = 1) -> None:
        """Run one batch of made-up items and look at what comes back.

        Raises:
            WarmUpError: Outputs are missing, of another width, or not finite.
        """
        results = self.run(bucket, collate(bucket, made_up_items(bucket, num_items)))
        arrays = [array for outputs in results for array in outputs.values()]
        sound = all(self._fits(bucket, a) and np.isfinite(a).all() for a in arrays)
        if len(results) != num_items or not sound:
            raise WarmUpError(
                f"the runtime {self.runtime.name!r} gives no usable results for "
                f"{bucket.label}; try another runtime, or export the model again"
            )

    def probe(self) -> None:
        """Try one item.

        Raises:
            Exception: The runtime does not compute.
        """
        self.try_out(self.probe_bucket)

    def interrupt(self) -> None:
        """End the batch that runs; see `Runtime.interrupt`."""
        self.runtime.interrupt()

    def rebuild(self) -> None:
        """Free the runtime, as far as it lets itself be freed, and load it anew.

        Raises:
            Exception: It cannot be loaded.
        """
        try:
            self.runtime.close()
        except Exception:
            logger.exception("a broken runtime could not be closed")
        self.runtime = self._load()

    def _fits(self, bucket: Bucket, array: NDArray[np.float32]) -> bool:
        """Whether an output has the shape that it should have."""
        if bucket.kind == "depth":
            return array.ndim == 2
        if bucket.kind == "normals":
            return array.ndim == 3 and len(array) == 3
        return bool(array.shape[-1] == self._embed_dim)

    def _maps(self, task: MapTask, pixels_B3HW: NDArray[Any]) -> list[Outputs]:
        return [{task: array} for array in self.runtime.estimate(task, pixels_B3HW)]

    def _images(self, pixels_B3HW: NDArray[Any]) -> list[Outputs]:
        output = self.runtime.encode_images(pixels_B3HW)
        return [
            {
                "patches": output.patches_BND[i],
                "values": output.values_BND[i],
                "cls1": output.cls1_BD[i],
                "cls2": output.cls2_BD[i],
            }
            for i in range(len(output.cls1_BD))
        ]

    def _texts(self, ids_BL: NDArray[Any], mask_BL: NDArray[Any]) -> list[Outputs]:
        # Copies, for the cache keeps single rows long after their batch.
        return [{TEXT_OUTPUT: row.copy()} for row in self.runtime.encode_texts(ids_BL, mask_BL)]


# A lane at work: one thread that takes batches, tries itself when idle, and mends its runtime.
#
# A batch that failed may have been at fault itself, so the lane first tries a batch of its own.
# Only where that fails too is the runtime loaded anew, a bounded number of times with growing
# pauses.

# Trials take no more than this share of an idle lane's time, however slow the model is.
TRIAL_SHARE: Final = 0.02


class LaneRunner(Protocol):
    """What computes for one lane; see `service.lanes.lane.Lane`."""

    probe_bucket: Bucket

    def run(self, bucket: Bucket, inputs: Inputs) -> Sequence[Outputs]:
        """Compute one batch."""

    def probe(self) -> None:
        """Compute one item of `probe_bucket` and look at the result; raises what ails it."""

    def rebuild(self) -> None:
        """Load the runtime anew."""

    def interrupt(self) -> None:
        """End the batch that runs, from another thread; `run` raises `Interrupted`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneCare:
    """How lanes are kept well.

    Attributes:
        probe_interval_s: A lane that had nothing to do for so long tries itself.
        hang_limit_s: A batch that takes longer is taken for hung, unless its curve says otherwise.
        dead_limit_s: No lane well for so long: the process should be started anew.
        pauses_s: Before each time that a runtime is loaded anew; after the last the lane is dead.
    """

    probe_interval_s: float = math.inf
    hang_limit_s: float = 30.0
    dead_limit_s: float = 60.0
    pauses_s: tuple[float, ...] = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneContext:
    """What the lanes of one model share."""

    queue: BatchQueue
    costs: CostBook
    metrics: Metrics
    care: LaneCare
    clock: Clock
    counts: BatchCounts = field(default_factory=BatchCounts)
    inputs_of: Collate = collate_batch


class LaneWorker:
    """One lane's thread and its pulse.

    Args:
        lane: What computes; used by this thread only.
        shared: With the model's other lanes.
        index: For the thread's name.
        on_death: Called once, by the lane's thread, when the lane is given up.
    """

    def __init__(
        self, lane: LaneRunner, shared: LaneContext, index: int, on_death: Callable[[], None]
    ) -> None:
        self.pulse = Pulse(shared.clock, shared.care.hang_limit_s)
        self.batch: Batch | None = None
        self.thread = threading.Thread(target=self._work, name=f"lane-{index}", daemon=True)
        self._lane = lane
        self._shared = shared
        self._on_death = on_death
        self._switching = threading.Lock()
        self._stopping = threading.Event()
        self.pause: Callable[[float], bool] = self._stopping.wait

    def stop(self) -> None:
        """Begin no further repair; the closed queue ends the rest."""
        self._stopping.set()

    def run(self, batch: Batch) -> bool:
        """Compute a batch and answer it; whether it came out well."""
        shared, bucket, num_items = self._shared, batch.bucket, len(batch.entries)
        self.batch = batch
        began = shared.clock()
        self.pulse.begin(shared.costs.batch_s(bucket, num_items))
        for entry in batch.entries:
            entry.future.on_left = partial(self._end_if_deserted, batch)
        self._end_if_deserted(batch)
        failure = run_batch(
            batch, self._lane.run, shared.metrics, shared.clock, inputs_of=shared.inputs_of
        )
        with self._switching:
            self.batch = None
        for entry in batch.entries:
            entry.future.on_left = None  # or batch and images would hold each other in a circle
        if isinstance(failure, Interrupted):
            shared.queue.abandoned.inc("interrupted", num_items)
            self.pulse.end()
            return True
        if failure is not None:
            self.pulse.rest()
            return False
        self.pulse.end()
        seconds = shared.clock() - began
        shared.costs.observe(bucket, num_items, seconds)
        shared.counts.observe(num_items, seconds)
        return True

    def _end_if_deserted(self, batch: Batch) -> None:
        """Spare what remains of a batch that nobody waits for any more. From any thread."""
        if batch.is_deserted:
            with self._switching:
                if self.batch is batch:
                    self._lane.interrupt()

    def try_out(self) -> bool:
        """Compute a batch of the lane's own; whether it came out well."""
        shared, bucket = self._shared, self._lane.probe_bucket
        began = shared.clock()
        self.pulse.begin(shared.costs.batch_s(bucket, 1))
        try:
            self._lane.probe()
        except Exception:
            self.pulse.fail()
            logger.exception("a lane's trial batch failed")
            return False
        self.pulse.end()
        shared.costs.observe(bucket, 1, shared.clock() - began)
        return True

    def repair(self) -> bool:
        """Load the runtime anew until a trial comes out well; False where the lane is given up."""
        for pause_s in self._shared.care.pauses_s:
            if self.pause(pause_s) or self._stopping.is_set():
                return False
            logger.warning("a lane loads its runtime anew")
            try:
                self._lane.rebuild()
            except Exception:
                logger.exception("a lane's runtime could not be loaded")
            else:
                if self.try_out():
                    self._shared.metrics.lane_rebuilds.inc()
                    return True
        logger.error("a lane was given up; the others go on")
        return False

    @property
    def trial_interval_s(self) -> float:
        """How long the lane waits for work before it tries itself."""
        trial_s = self._shared.costs.batch_s(self._lane.probe_bucket, 1)
        return max(self._shared.care.probe_interval_s, trial_s / TRIAL_SHARE)

    def _work(self) -> None:
        queue = self._shared.queue
        while True:
            batch = queue.wait_and_take(self.trial_interval_s)
            if batch is None and queue.is_closed:
                return
            if batch is not None and self.run(batch):
                continue
            if not self.try_out() and not self.repair():
                self.pulse.die()
                self._on_death()
                return
