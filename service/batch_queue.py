"""What waits for a lane, by shape, and how the next batch is formed. Knows no threads of its own.

A batch takes items of one bucket, oldest first, up to the bucket's limits; the bucket whose head is
oldest goes first. An item whose caller has left is never computed: a cancelled one is removed when
it is cancelled, an expired one when a batch is formed, and a caller is only ever answered once.
"""

import math
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from service.call import Clock, deadline_exceeded
from service.errors import ServiceError, Unavailable
from service.observability import Metrics
from service.tracing import NO_BATCH, NO_TRACE, BatchTrace, RequestTrace

Kind = Literal["image", "text"]
Outputs = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Bucket:
    """Items that can share a batch: pictures of one (height, width), texts of one padded length."""

    kind: Kind
    shape: tuple[int, ...]

    @property
    def label(self) -> str:
        """Such as `image 112x112`."""
        return f"{self.kind} {'x'.join(map(str, self.shape))}"


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLimits:
    """How much one batch may hold: items, and their cost in patches or tokens."""

    max_items: int
    max_cost: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkItem:
    """One picture or text, ready for the runtime; monotonic deadline in seconds.

    `trace` is its request's, which every batch that takes the item is linked to.
    """

    bucket: Bucket
    cost: int
    payload: NDArray[Any]
    deadline: float = math.inf
    trace: RequestTrace = NO_TRACE


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """The runtime's outputs for one item, how long it waited and ran, in seconds, and its batch."""

    outputs: Outputs
    queue_s: float
    run_s: float
    batch: BatchTrace = NO_BATCH


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Entry:
    """An item that waits, with its caller's future."""

    number: int
    item: WorkItem
    enqueued: float
    future: "Future[Completed]" = field(default_factory=Future)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """Entries that a lane computes together; their futures can no longer be cancelled."""

    bucket: Bucket
    entries: tuple[Entry, ...]
    taken: float

    @property
    def cost(self) -> int:
        """Of all entries together."""
        return sum(entry.item.cost for entry in self.entries)


class BatchQueue:
    """The waiting entries of all buckets. Thread-safe."""

    def __init__(self, limits: Mapping[Kind, BatchLimits], metrics: Metrics, clock: Clock) -> None:
        self._limits = limits
        self._metrics = metrics
        self._clock = clock
        self._buckets: dict[Bucket, OrderedDict[int, Entry]] = {}
        self._changed = threading.Condition()
        self._next_number = 0
        self._closed = False

    def put(self, items: Sequence[WorkItem]) -> list["Future[Completed]"]:
        """Queue all items of a request at once, in order; one future each.

        Raises:
            Unavailable: The queue is closed.
        """
        now = self._clock()
        with self._changed:
            if self._closed:
                raise _stopping()
            entries = [
                Entry(number=self._next_number + i, item=item, enqueued=now)
                for i, item in enumerate(items)
            ]
            self._next_number += len(entries)
            for entry in entries:
                self._buckets.setdefault(entry.item.bucket, OrderedDict())[entry.number] = entry
            self._changed.notify(len(entries))
        for entry in entries:
            entry.future.add_done_callback(partial(self._drop, entry))
        return [entry.future for entry in entries]

    def take(self) -> Batch | None:
        """Form the next batch without waiting; None where nothing is left to compute."""
        with self._changed:
            batch, expired = self._form()
        self._answer_expired(expired)
        return batch

    def wait_and_take(self) -> Batch | None:
        """Form the next batch, waiting for work; None once the queue is closed and empty."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._buckets) or self._closed)
                batch, expired = self._form()
                closed = self._closed
            self._answer_expired(expired)
            if batch is not None or closed:
                return batch

    def close(self) -> None:
        """Take nothing more and answer everything that waits with `Unavailable`."""
        with self._changed:
            self._closed = True
            waiting = [e for bucket in self._buckets.values() for e in bucket.values()]
            self._buckets.clear()
            self._changed.notify_all()
        for entry in waiting:
            if entry.future.set_running_or_notify_cancel():
                settle(entry.future, error=_stopping())

    def depths(self) -> dict[Bucket, int]:
        """How many entries wait in each bucket."""
        with self._changed:
            return {bucket: len(entries) for bucket, entries in self._buckets.items()}

    def oldest_s(self) -> float:
        """Seconds that the oldest entry has waited; 0 where none waits."""
        with self._changed:
            heads = [next(iter(entries.values())) for entries in self._buckets.values()]
        return self._clock() - min(h.enqueued for h in heads) if heads else 0.0

    def _form(self) -> tuple[Batch | None, list[Entry]]:
        """The next batch and the expired entries met on the way. Holds the lock."""
        now = self._clock()
        expired: list[Entry] = []
        while self._buckets:
            bucket = min(self._buckets, key=lambda b: next(iter(self._buckets[b])))
            entries = self._pick(bucket, now, expired)
            if entries:
                return Batch(bucket=bucket, entries=tuple(entries), taken=now), expired
        return None, expired

    def _pick(self, bucket: Bucket, now: float, expired: list[Entry]) -> list[Entry]:
        limits = self._limits[bucket.kind]
        waiting = self._buckets[bucket]
        picked: list[Entry] = []
        cost = 0
        while waiting:
            entry = next(iter(waiting.values()))
            full = len(picked) == limits.max_items or cost + entry.item.cost > limits.max_cost
            if picked and full:
                break
            waiting.popitem(last=False)
            if not entry.future.set_running_or_notify_cancel():
                continue
            if entry.item.deadline <= now:
                expired.append(entry)
                continue
            picked.append(entry)
            cost += entry.item.cost
        if not waiting:
            del self._buckets[bucket]
        return picked

    def _drop(self, entry: Entry, future: "Future[Completed]") -> None:
        """Forget an entry whose caller cancelled it before it was taken."""
        if not future.cancelled():
            return
        self._metrics.abandoned.labels("cancelled").inc()
        with self._changed:
            waiting = self._buckets.get(entry.item.bucket)
            if waiting is not None and entry.number in waiting:
                del waiting[entry.number]
                if not waiting:
                    del self._buckets[entry.item.bucket]

    def _answer_expired(self, expired: Sequence[Entry]) -> None:
        for entry in expired:
            self._metrics.abandoned.labels("deadline").inc()
            settle(entry.future, error=deadline_exceeded())


def settle(
    future: "Future[Completed]",
    *,
    value: Completed | None = None,
    error: ServiceError | None = None,
) -> None:
    """Answer a running future with a value or an error, unless it has been answered already."""
    with suppress(InvalidStateError):
        if error is not None:
            future.set_exception(error)
        elif value is not None:
            future.set_result(value)


def _stopping() -> Unavailable:
    return Unavailable("The server is stopping; try again.", retry_after_s=1.0)
