"""The queue in front of the lanes: one queue per bucket, and how batches are formed.

Scheduling order: priority, fair share, arrival. An item rises one priority level with every
`priority_step_s` that it waits, so no item starves. It then counts like newer items of that level,
and never outranks those of its own: otherwise a caller would win by the length of its own queue.
Among items that count alike, the caller that has used less of the lanes goes first; of one caller,
the oldest item.

A batch holds items of one bucket, in scheduling order, up to the bucket's limits. The bucket of the
first item in that order goes first. Cancelled items leave the queue at once, expired ones when a
batch is formed; neither is computed, and every future is resolved exactly once.
"""

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from service.call import Clock, deadline_exceeded
from service.errors import ServiceError, Unavailable
from service.lanes.work import (
    Batch,
    BatchLimits,
    Bucket,
    ItemFuture,
    Kind,
    QueuedItem,
    WorkItem,
)
from service.monitoring.metrics import Metrics, ModelCounter

# A caller's timer may fire slightly before the deadline that it was set for.
TIMER_SLACK_S: Final = 0.001

# Priority level now, virtual time of the caller, rank. The smallest key is served first.
SchedulingKey = tuple[int, float, tuple[float, int]]


class FairShare:
    """Virtual time of each caller: the cost that it has used of the lanes. Not thread-safe.

    A caller that floods the queue waits behind its own items only. One that returns after a pause
    continues level with the others: it has no credit, and does not pay for what it used while
    no other caller was waiting.

    Source: start-time fair queueing (P. Goyal, H. Vin, H. Cheng, 1996).
    """

    def __init__(self) -> None:
        self._virtual_times: dict[str, float] = {}
        self._num_waiting: dict[str, int] = {}
        self._level = 0.0

    def add(self, caller: str) -> None:
        """Count an item that starts to wait."""
        if caller not in self._num_waiting:
            self._num_waiting[caller] = 0
            self._virtual_times[caller] = max(self._virtual_times.get(caller, 0.0), self._level)
        self._num_waiting[caller] += 1

    def remove(self, caller: str) -> None:
        """Count an item that no longer waits, served or not."""
        self._num_waiting[caller] -= 1
        if not self._num_waiting[caller]:
            del self._num_waiting[caller]
        if not self._num_waiting:  # with no caller left to compare, start over
            self._virtual_times.clear()
            self._level = 0.0

    def charge(self, caller: str, cost: float) -> None:
        """Charge a caller for an item that is served."""
        self._level = self._virtual_times[caller]
        self._virtual_times[caller] += cost

    def virtual_time(self, caller: str) -> float:
        """Virtual time of a waiting caller; the smallest is served first."""
        return self._virtual_times[caller]


class BucketQueue:
    """Waiting items of one bucket, by rank. Not thread-safe.

    Within one caller and priority level, items are served by rank. Each level of each caller is
    therefore a queue of its own, and only their heads are compared. Removing an item costs the same
    anywhere in the queue.
    """

    def __init__(self) -> None:
        self._levels: dict[tuple[int, str], OrderedDict[int, QueuedItem]] = {}
        self.num_items = 0

    def add(self, entry: QueuedItem) -> None:
        """Append an item."""
        level = self._levels.get(entry.level)
        if level is None:
            level = self._levels[entry.level] = OrderedDict()
        level[entry.number] = entry
        self.num_items += 1

    def remove(self, entry: QueuedItem) -> bool:
        """Remove an item; False if it is not in this queue."""
        level = self._levels.get(entry.level)
        if level is None or level.pop(entry.number, None) is None:
            return False
        if not level:
            del self._levels[entry.level]
        self.num_items -= 1
        return True

    @property
    def oldest(self) -> float:
        """Arrival of the oldest item, in monotonic seconds."""
        return min(entry.enqueued for entry in self.heads())

    def heads(self) -> list[QueuedItem]:
        """The first item of each level of each caller."""
        return [next(iter(level.values())) for level in self._levels.values()]

    def entries(self) -> list[QueuedItem]:
        """All items."""
        return [entry for level in self._levels.values() for entry in level.values()]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRules:
    """How batches are formed.

    Attributes:
        limits: Limits of a batch, by kind.
        priority_step_s: Waiting time after which an item counts as one level higher.
        split_evenly: Whether lanes that are idle at the same time split the waiting items; if not,
            the first one takes all that fit.
    """

    limits: Mapping[Kind, BatchLimits]
    priority_step_s: float = 5.0
    split_evenly: bool = False


def stopping_error() -> Unavailable:
    """Error for work that has not begun when the server stops."""
    return Unavailable("The server is stopping; try again.", retry_after_s=1.0)


class BatchQueue:
    """Waiting items of all buckets. Thread-safe; has no threads of its own."""

    def __init__(self, rules: BatchRules, metrics: Metrics, clock: Clock) -> None:
        self._rules = rules
        self._fairness = FairShare()
        self.abandoned = ModelCounter(metrics.abandoned)
        self._clock = clock
        self._queues: dict[Bucket, BucketQueue] = {}
        # `with condition` takes this lock by a call in Python, `with lock` without.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._num_idle = 0
        self._next_number = 0
        self._closed_by: Callable[[], ServiceError] | None = None

    @property
    def is_closed(self) -> bool:
        """Whether the queue refuses items."""
        return self._closed_by is not None

    def put(self, items: Sequence[WorkItem]) -> list[ItemFuture]:
        """Queue all items of a request at once, in order.

        Returns:
            One future for each item. Cancelling it removes the item, unless a lane has taken it.

        Raises:
            ServiceError: The queue is closed.
        """
        now = self._clock()
        with self._lock:
            if self._closed_by is not None:
                raise self._closed_by()
            entries = [self._enqueue(item, now) for item in items]
            self._changed.notify(len(entries))
        return [entry.future for entry in entries]

    def take(self) -> Batch | None:
        """Form the next batch without waiting; None if nothing waits."""
        with self._lock:
            batch, expired = self._form()
        self._answer_expired(expired)
        return batch

    def wait_and_take(self, timeout_s: float = math.inf) -> Batch | None:
        """Wait for the next batch; None if the queue is closed, or after the time-out."""
        until = self._clock() + timeout_s
        while True:
            with self._lock:
                self._num_idle += 1
                batch, expired = self._form()
                wait_s = until - self._clock()
                if batch is None and not expired and not self.is_closed and wait_s > 0:
                    self._changed.wait(None if wait_s == math.inf else wait_s)
                self._num_idle -= 1
            if expired:
                self._answer_expired(expired)
            if batch is not None or self.is_closed or self._clock() >= until:
                return batch

    def count_abandoned(self, num_items: int, deadline: float) -> None:
        """Count items that are not computed because the caller left or the deadline passed."""
        is_late = deadline - TIMER_SLACK_S <= self._clock()
        self.abandoned.inc("deadline" if is_late else "cancelled", num_items)

    def close(self, reason: Callable[[], ServiceError] = stopping_error) -> None:
        """Refuse new items and fail all waiting ones; the reason of the first call counts."""
        with self._lock:
            self._closed_by = self._closed_by or reason
            waiting = [entry for queue in self._queues.values() for entry in queue.entries()]
            self._queues.clear()
            self._fairness = FairShare()
            self._changed.notify_all()
        for entry in waiting:
            if entry.future.start():
                entry.future.settle(error=reason())

    def depths(self) -> dict[Bucket, int]:
        """Number of waiting items in each bucket."""
        with self._lock:
            return {bucket: queue.num_items for bucket, queue in self._queues.items()}

    def oldest_s(self) -> float:
        """Waiting time of the oldest item in seconds; 0 if the queue is empty."""
        with self._lock:
            oldest = min((queue.oldest for queue in self._queues.values()), default=None)
        return 0.0 if oldest is None else self._clock() - oldest

    def _enqueue(self, item: WorkItem, now: float) -> QueuedItem:
        self._fairness.add(item.caller)
        rank = now + (item.priority - 1) * self._rules.priority_step_s
        number = self._next_number
        self._next_number += 1
        level = item.priority, item.caller
        entry = QueuedItem(number=number, item=item, enqueued=now, level=level, rank=(rank, number))
        entry.future.on_left = partial(self._drop_cancelled, entry)
        queue = self._queues.get(item.bucket)
        if queue is None:
            queue = self._queues[item.bucket] = BucketQueue()
        queue.add(entry)
        return entry

    def _first(self, heads: Sequence[QueuedItem], now: float) -> QueuedItem:
        """The item that is served first."""
        if len(heads) == 1:
            return heads[0]
        most_urgent = min(entry.item.priority for entry in heads)

        def key(entry: QueuedItem) -> SchedulingKey:
            item = entry.item
            num_steps = int((now - entry.enqueued) / self._rules.priority_step_s)
            level = max(most_urgent, item.priority - num_steps)
            return level, self._fairness.virtual_time(item.caller), entry.rank

        return min(heads, key=key)

    def _first_bucket(self, now: float) -> Bucket:
        first, *others = self._queues
        if not others:
            return first
        heads = [entry for queue in self._queues.values() for entry in queue.heads()]
        return self._first(heads, now).item.bucket

    def _remove(self, entry: QueuedItem) -> None:
        """Remove an item from its bucket, if it is still there."""
        queue = self._queues.get(entry.item.bucket)
        if queue is None or not queue.remove(entry):
            return
        self._fairness.remove(entry.item.caller)
        if not queue.num_items:
            del self._queues[entry.item.bucket]

    def _form(self) -> tuple[Batch | None, list[QueuedItem]]:
        """The next batch, and expired items. Needs the lock."""
        now = self._clock()
        expired: list[QueuedItem] = []
        while self._queues:
            bucket = self._first_bucket(now)
            entries = self._pick(bucket, now, expired)
            if entries:
                return Batch(bucket=bucket, entries=tuple(entries), taken=now), expired
        return None, expired

    def _pick(self, bucket: Bucket, now: float, expired: list[QueuedItem]) -> list[QueuedItem]:
        """Remove the items of the next batch of a bucket; expired ones go to `expired`."""
        limits = self._rules.limits[bucket.kind]
        queue = self._queues[bucket]
        max_items = self._even_part(queue.num_items)
        picked: list[QueuedItem] = []
        cost = 0
        while queue.num_items and len(picked) < max_items:
            entry = self._first(queue.heads(), now)
            if not limits.fits(len(picked) + 1, cost + entry.item.cost):
                break
            # False if the caller has cancelled; from here on it can no longer cancel.
            is_running = entry.future.start()
            if is_running and entry.item.deadline > now:
                self._fairness.charge(entry.item.caller, entry.item.cost)
                picked.append(entry)
                cost += entry.item.cost
            elif is_running:
                expired.append(entry)
            self._remove(entry)
        return picked

    def _even_part(self, num_waiting: int) -> int:
        """How many waiting items the asking lane may take, if idle lanes share them."""
        if not self._rules.split_evenly:
            return num_waiting
        return -(-num_waiting // max(1, self._num_idle))

    def _drop_cancelled(self, entry: QueuedItem) -> None:
        """Remove an item whose caller cancelled it, unless a lane has taken it."""
        if entry.future.state != "cancelled":
            return
        self.count_abandoned(1, entry.item.deadline)
        with self._lock:
            self._remove(entry)

    def _answer_expired(self, expired: Sequence[QueuedItem]) -> None:
        # Outside of the lock: resolving a future calls its callbacks.
        for entry in expired:
            self.abandoned.inc("deadline")
            entry.future.settle(error=deadline_exceeded())
