"""A lane at work: one thread that takes batches, tries itself when idle, and mends its runtime.

A batch that failed may have been at fault itself, so the lane first tries a batch of its own. Only
where that fails too is the runtime loaded anew, a bounded number of times with growing pauses.
"""

import logging
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Protocol

from model.runtime.base import Interrupted
from service.call import Clock
from service.lanes.batch_counts import BatchCounts
from service.lanes.batch_queue import BatchQueue
from service.lanes.batch_run import Collate, collate_batch, run_batch
from service.lanes.collation import Inputs
from service.lanes.cost_curve import CostBook
from service.lanes.pulse import Pulse
from service.lanes.work import Batch, Bucket, Outputs
from service.monitoring.observability import Metrics

# Trials take no more than this share of an idle lane's time, however slow the model is.
TRIAL_SHARE: Final = 0.02

logger = logging.getLogger(__name__)


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
