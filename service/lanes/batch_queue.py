"""The queue in front of the lanes, and how batches are formed.

Scheduling order: priority, fair share, arrival. An item rises one priority level with every
`PRIORITY_STEP_S` that it waits, so no item starves. It then counts like newer items of that level,
and never outranks those of its own: otherwise a caller would win by the length of its own queue.
Among items that count alike, the caller that has used less of the lanes goes first; of one caller,
the oldest item.

A batch holds items of one bucket, that of the first item, in scheduling order, up to the bucket's
limits. Cancelled items leave the queue at once, expired ones when a batch is formed; neither is
computed, and every future is resolved exactly once.
"""

import math
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

from service.call import Clock, deadline_exceeded
from service.errors import ServiceError, Unavailable
from service.lanes.work import Batch, BatchLimits, Bucket, ItemFuture, WorkItem
from service.monitoring.metrics import Metrics, ModelCounter

# Waiting time after which an item counts as one priority level higher.
PRIORITY_STEP_S: Final = 5.0
# A caller's timer may fire slightly before the deadline that it was set for.
TIMER_SLACK_S: Final = 0.001

# Priority level now, virtual time of the caller, rank by arrival. The smallest key is served first.
SchedulingKey = tuple[int, float, float, int]


class FairShare:
    """Virtual time of each caller: the cost that it has used of the lanes. Not thread-safe.

    A caller that floods the queue waits behind its own items only. One that returns after a pause
    continues level with the others: it has no credit, and does not pay for what it used while
    no other caller was waiting.

    Source: start-time fair queueing (P. Goyal, H. Vin, H. Cheng, 1996).
    """

    def __init__(self) -> None:
        self.virtual_times: dict[str, float] = {}
        self._num_waiting: Counter[str] = Counter()
        self._level = 0.0

    def add(self, caller: str) -> None:
        """Count an item that starts to wait."""
        if not self._num_waiting[caller]:
            self.virtual_times[caller] = max(self.virtual_times.get(caller, 0.0), self._level)
        self._num_waiting[caller] += 1

    def remove(self, caller: str) -> None:
        """Count an item that no longer waits, served or not."""
        self._num_waiting[caller] -= 1
        if not self._num_waiting[caller]:
            del self._num_waiting[caller]
        if not self._num_waiting:  # with no caller left to compare, start over
            self.virtual_times.clear()
            self._level = 0.0

    def charge(self, caller: str, cost: float) -> None:
        """Charge a caller for an item that is served."""
        self._level = self.virtual_times[caller]
        self.virtual_times[caller] += cost


def stopping_error() -> Unavailable:
    """Error for work that has not begun when the server stops."""
    return Unavailable("The server is stopping; try again.", retry_after_s=1.0)


class BatchQueue:
    """Waiting items of all buckets. Thread-safe; has no threads of its own.

    Args:
        limits: Limits of a batch.
        metrics: Counts abandoned items.
        clock: Monotonic seconds.
        split_evenly: Whether lanes that are idle at the same time split the waiting items; if not,
            the first one takes all that fit.
    """

    def __init__(
        self, limits: BatchLimits, metrics: Metrics, clock: Clock, *, split_evenly: bool = False
    ) -> None:
        self.abandoned = ModelCounter(metrics.abandoned)
        self._limits, self._clock, self._split_evenly = limits, clock, split_evenly
        self._fairness = FairShare()
        # Items of one bucket, priority and caller are served as they arrive, so only the first of
        # each are compared.
        self._waiting: dict[tuple[Bucket, int, str], OrderedDict[int, WorkItem]] = {}
        self._changed = threading.Condition()
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
            The future of each item. Cancelling it removes the item, unless a lane has taken it.

        Raises:
            ServiceError: The queue is closed.
        """
        now = self._clock()
        with self._changed:
            if self._closed_by is not None:
                raise self._closed_by()
            for item in items:
                self._enqueue(item, now)
            self._changed.notify(len(items))
        return [item.future for item in items]

    def take(self, timeout_s: float = 0.0) -> Batch | None:
        """Wait for the next batch; None if the queue is closed, or after the time-out."""
        until = self._clock() + timeout_s
        while True:
            with self._changed:
                self._num_idle += 1
                batch, expired = self._form()
                wait_s = until - self._clock()
                if batch is None and not expired and not self.is_closed and wait_s > 0:
                    self._changed.wait(None if wait_s == math.inf else wait_s)
                self._num_idle -= 1
            # Outside of the lock: resolving a future calls its callbacks.
            for item in expired:
                self.abandoned.inc("deadline")
                item.future.settle(error=deadline_exceeded())
            if batch is not None or self.is_closed or self._clock() >= until:
                return batch

    def count_abandoned(self, num_items: int, deadline: float) -> None:
        """Count items that are not computed because the caller left or the deadline passed."""
        is_late = deadline - TIMER_SLACK_S <= self._clock()
        self.abandoned.inc("deadline" if is_late else "cancelled", num_items)

    def close(self, reason: Callable[[], ServiceError] = stopping_error) -> None:
        """Refuse new items and fail all waiting ones; the reason of the first call counts."""
        with self._changed:
            self._closed_by = self._closed_by or reason
            waiting = [item for items in self._waiting.values() for item in items.values()]
            self._waiting.clear()
            self._fairness = FairShare()
            self._changed.notify_all()
        for item in waiting:
            if item.future.start():
                item.future.settle(error=reason())

    def depths(self) -> Mapping[Bucket, int]:
        """Number of waiting items in each bucket."""
        depths: Counter[Bucket] = Counter()
        with self._changed:
            for (bucket, _, _), items in self._waiting.items():
                depths[bucket] += len(items)
        return depths

    def oldest_s(self) -> float:
        """Waiting time of the oldest item in seconds; 0 if the queue is empty."""
        with self._changed:
            oldest = min((item.enqueued for item in self._heads()), default=None)
        return 0.0 if oldest is None else self._clock() - oldest

    def _enqueue(self, item: WorkItem, now: float) -> None:
        item.number, item.enqueued = self._next_number, now
        self._next_number += 1
        self._fairness.add(item.caller)
        key = item.bucket, item.priority, item.caller
        items = self._waiting.get(key)
        if items is None:
            items = self._waiting[key] = OrderedDict()
        items[item.number] = item
        item.future.on_left = partial(self._drop_cancelled, item)
        if item.future.cancelled():  # before `on_left` was set
            self._drop_cancelled(item)

    def _heads(self, bucket: Bucket | None = None) -> list[WorkItem]:
        return [
            next(iter(items.values()))
            for key, items in self._waiting.items()
            if bucket is None or key[0] == bucket
        ]

    def _first(self, bucket: Bucket | None, now: float) -> WorkItem | None:
        """The item that is served first, of a bucket or of all."""
        heads = self._heads(bucket)
        if len(heads) <= 1:
            return heads[0] if heads else None
        most_urgent = min(item.priority for item in heads)

        def key(item: WorkItem) -> SchedulingKey:
            num_steps = int((now - item.enqueued) / PRIORITY_STEP_S)
            level = max(most_urgent, item.priority - num_steps)
            rank = item.enqueued + item.priority * PRIORITY_STEP_S
            return level, self._fairness.virtual_times[item.caller], rank, item.number

        return min(heads, key=key)

    def _form(self) -> tuple[Batch | None, list[WorkItem]]:
        """The next batch, and expired items. Needs the lock."""
        now, cost, most_items = self._clock(), 0, 0
        picked: list[WorkItem] = []
        expired: list[WorkItem] = []
        while (item := self._first(picked[0].bucket if picked else None, now)) is not None:
            if not picked:
                most_items = self._most_items(item.bucket)
            num_items, kind = len(picked) + 1, item.bucket.kind
            if num_items > most_items or not self._limits.fits(kind, num_items, cost + item.cost):
                break
            # False if the caller has cancelled; from here on it can no longer cancel.
            is_running = item.future.start()
            if is_running and item.deadline > now:
                self._fairness.charge(item.caller, item.cost)
                picked.append(item)
                cost += item.cost
            elif is_running:
                expired.append(item)
            else:
                self.count_abandoned(1, item.deadline)
            self._remove(item)
        if not picked:
            return None, expired
        return Batch(bucket=picked[0].bucket, items=tuple(picked), taken=now), expired

    def _most_items(self, bucket: Bucket) -> int:
        """How many waiting items the asking lane may take, if idle lanes share them."""
        num_waiting = sum([len(items) for key, items in self._waiting.items() if key[0] == bucket])
        return -(-num_waiting // self._num_idle) if self._split_evenly else num_waiting

    def _remove(self, item: WorkItem) -> bool:
        """Remove an item; False if it does not wait."""
        key = item.bucket, item.priority, item.caller
        items = self._waiting.get(key)
        if items is None or items.pop(item.number, None) is None:
            return False
        if not items:
            del self._waiting[key]
        self._fairness.remove(item.caller)
        return True

    def _drop_cancelled(self, item: WorkItem) -> None:
        """Remove an item whose caller cancelled it, unless a lane has taken it."""
        if not item.future.cancelled():
            return
        with self._changed:
            is_dropped = self._remove(item)
        if is_dropped:
            self.count_abandoned(1, item.deadline)
