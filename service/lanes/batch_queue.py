"""What waits for the lanes: a queue per shape, in scheduling order."""

import heapq
import math
import threading
from collections import Counter as Total
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Final

from service.call import Clock, deadline_exceeded
from service.errors import ServiceError, Unavailable
from service.lanes.work import Batch, BatchLimits, Bucket, Completed, Entry, Kind, WorkItem, settle
from service.monitoring.metrics import Metrics, ModelCounter

# How many batches of each size one model's lanes have computed, and how long they took.


class BatchCounts:
    """Thread-safe: every lane counts here."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals: dict[int, tuple[int, float]] = {}

    def observe(self, num_items: int, seconds: float) -> None:
        """Count one batch that came out well."""
        with self._lock:
            count, total_s = self._totals.get(num_items, (0, 0.0))
            self._totals[num_items] = count + 1, total_s + seconds

    def totals(self) -> Mapping[int, tuple[int, float]]:
        """By number of items, how many batches there were and their seconds together."""
        with self._lock:
            return dict(sorted(self._totals.items()))


# How much each flow has had of the lanes, so that flows which wait take turns.
#
# Start-time fair queueing (P. Goyal, H. Vin, H. Cheng, 1996): a flow that floods the queue waits
# behind itself, and one that comes back after a pause goes on level with the others: it neither
# saves up turns nor pays for what it had while nobody else waited.


class FairShare:
    """Counts cost by flow. Not thread-safe."""

    def __init__(self) -> None:
        self._had: dict[str, float] = {}
        self._num_waiting: dict[str, int] = {}
        self._level = 0.0

    def come(self, flow: str) -> None:
        """An entry of this flow begins to wait."""
        if flow not in self._num_waiting:
            self._num_waiting[flow] = 0
            self._had[flow] = max(self._had.get(flow, 0.0), self._level)
        self._num_waiting[flow] += 1

    def go(self, flow: str) -> None:
        """One waits no more, whether it was served or not."""
        self._num_waiting[flow] -= 1
        if not self._num_waiting[flow]:
            del self._num_waiting[flow]
        if not self._num_waiting:  # nobody is left to be compared with
            self._had.clear()
            self._level = 0.0

    def serve(self, flow: str, cost: float) -> None:
        """One that waits is served."""
        self._level = self._had[flow]
        self._had[flow] += cost

    def had(self, flow: str) -> float:
        """Cost that it had, on the common scale; of flows that wait the least goes first."""
        return self._had[flow]


# The entries of one bucket that wait, in the order in which they are served.

# An entry's priority level by now, what its flow has had, and its rank.
Turn = tuple[int, float, tuple[float, int]]


class WaitingLine:
    """Ordered by rank; an entry leaves it from anywhere at the cost of leaving at the head.

    Of one flow and priority level entries come in the order of their ranks, so each such level is a
    queue of its own and only the levels' heads need to be compared. Not thread-safe.
    """

    def __init__(self) -> None:
        self._levels: dict[tuple[int, str], OrderedDict[int, Entry]] = {}
        self.cost = 0

    def add(self, entry: Entry) -> None:
        """Let an entry wait."""
        level = self._levels.setdefault(_level_of(entry), OrderedDict())
        level[entry.number] = entry
        self.cost += entry.item.cost

    def remove(self, entry: Entry) -> bool:
        """Forget an entry; False where it does not wait here."""
        level = self._levels.get(_level_of(entry))
        if level is None or level.pop(entry.number, None) is None:
            return False
        if not level:
            del self._levels[_level_of(entry)]
        self.cost -= entry.item.cost
        return True

    def num_of(self, flow: str, priority: int) -> int:
        """How many of a flow wait at this level or a more urgent one."""
        return sum(
            len(entries)
            for (level, name), entries in self._levels.items()
            if name == flow and level <= priority
        )

    def flows(self) -> set[str]:
        """Whose entries wait."""
        return {flow for _, flow in self._levels}

    def first(self, key: Callable[[Entry], Turn]) -> Entry:
        """Who is next by this key, which keeps each flow's order; the line must not be empty."""
        return min(self._heads(), key=key)

    @property
    def oldest(self) -> float:
        """When the entry that has waited longest came, in monotonic seconds."""
        return min(entry.enqueued for entry in self._heads())

    def __iter__(self) -> Iterator[Entry]:
        levels = (level.values() for level in self._levels.values())
        return heapq.merge(*levels, key=lambda entry: entry.rank)

    def __len__(self) -> int:
        return sum(map(len, self._levels.values()))

    def _heads(self) -> Iterator[Entry]:
        return (next(iter(level.values())) for level in self._levels.values())


def _level_of(entry: Entry) -> tuple[int, str]:
    return entry.item.priority, entry.item.flow


# What waits for a lane, by shape, and how the next batch is formed. Knows no threads of its own.
#
# A batch takes items of one bucket, in turn, up to the bucket's limits; the bucket whose first item
# is next goes first. The urgent go first, but an item rises a priority level with every step of
# time that it waits, so nothing starves; of one level the flow goes first that has had less of the
# lanes, and of one flow what came first. An item whose caller has left is never computed: a
# cancelled one is removed when it is cancelled, an expired one when a batch is formed, and a
# caller is answered only once.

# A caller's timer may go off a moment before the deadline that it was set for.
TIMER_SLACK_S: Final = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRules:
    """How batches are formed.

    Attributes:
        limits: How much a batch of each kind may hold.
        max_wait_s: How long an item may wait for its batch to fill while a lane is free.
        priority_step_s: How much earlier an item would have to come to go before one of the
            next higher level.
        share_evenly: Whether lanes that are free at the same moment share what waits, instead of
            the first taking all it can.
        prepare_ahead: Whether the next batch is put together while the lanes compute theirs.
    """

    limits: Mapping[Kind, BatchLimits]
    max_wait_s: float = 0.0
    priority_step_s: float = 5.0
    share_evenly: bool = False
    prepare_ahead: bool = False


def stopping() -> Unavailable:
    """What callers are told who still wait when the server stops."""
    return Unavailable("The server is stopping; try again.", retry_after_s=1.0)


class BatchQueue:
    """The waiting entries of all buckets. Thread-safe."""

    def __init__(self, rules: BatchRules, metrics: Metrics, clock: Clock) -> None:
        self._rules = rules
        self._shares = FairShare()
        self.abandoned = ModelCounter(metrics.abandoned)
        self._clock = clock
        self._lines: dict[Bucket, WaitingLine] = {}
        lock = threading.RLock()
        self._changed = threading.Condition(lock)
        # Whoever looks ahead waits apart from the lanes, so that it never takes their call.
        self._moved = threading.Condition(lock)
        self._num_idle = 0
        self._next_number = 0
        self._closed_by: Callable[[], ServiceError] | None = None

    @property
    def is_closed(self) -> bool:
        """Whether nothing is taken any more."""
        return self._closed_by is not None

    def put(self, items: Sequence[WorkItem]) -> list["Future[Completed]"]:
        """Queue all items of a request at once, in order; one future each.

        Raises:
            ServiceError: The queue is closed.
        """
        now = self._clock()
        with self._changed:
            if self._closed_by is not None:
                raise self._closed_by()
            entries = [self._enter(item, now) for item in items]
            self._changed.notify(len(entries))
            self._moved.notify()
        for entry in entries:
            entry.future.add_done_callback(partial(self._drop, entry))
        return [entry.future for entry in entries]

    def take(self) -> Batch | None:
        """Form the next batch without waiting; None where nothing is due."""
        with self._changed:
            batch, expired, _ = self._form()
        self._answer_expired(expired)
        return batch

    def wait_and_take(self, timeout_s: float = math.inf) -> Batch | None:
        """Form the next batch, waiting for work; None once closed, or after the time-out."""
        until = self._clock() + timeout_s
        while True:
            with self._changed:
                self._num_idle += 1
                batch, expired, due = self._form()
                patience_s = min(due, until) - self._clock()
                if batch is None and not expired and not self.is_closed and patience_s > 0:
                    self._changed.wait(None if patience_s == math.inf else patience_s)
                self._num_idle -= 1
                self._moved.notify()
            self._answer_expired(expired)
            if batch is not None or self.is_closed or self._clock() >= until:
                return batch

    def wait_and_peek(self, known: Sequence[int]) -> list[Entry] | None:
        """What would be the next batch, which stays in the queue; None once closed.

        Waits while a lane is free, which takes it at once, and while its entries are those with the
        known numbers.
        """
        with self._changed:
            while not self.is_closed:
                entries = [] if self._num_idle else self._peek()
                if entries and [entry.number for entry in entries] != list(known):
                    return entries
                self._moved.wait()
        return None

    def count_abandoned(self, num_items: int, deadline: float) -> None:
        """Count items that are not computed, for their caller left or their deadline passed."""
        is_late = deadline - TIMER_SLACK_S <= self._clock()
        self.abandoned.inc("deadline" if is_late else "cancelled", num_items)

    def close(self, reason: Callable[[], ServiceError] = stopping) -> None:
        """Take nothing more and answer everything that waits with the reason; the first counts."""
        with self._changed:
            self._closed_by = self._closed_by or reason
            waiting = [entry for line in self._lines.values() for entry in line]
            self._lines.clear()
            self._shares = FairShare()
            self._changed.notify_all()
            self._moved.notify_all()
        for entry in waiting:
            if entry.future.set_running_or_notify_cancel():
                settle(entry.future, error=reason())

    def depths(self) -> dict[Bucket, int]:
        """How many entries wait in each bucket."""
        with self._changed:
            return {bucket: len(line) for bucket, line in self._lines.items()}

    def ahead_of(self, priority: int, flow: str = "") -> dict[Bucket, int]:
        """How many entries of each bucket at least go before one that comes now.

        All of its own flow that are no less urgent; of each other flow no more than as many.
        """
        with self._changed:
            lines = self._lines.values()
            own = sum(line.num_of(flow, priority) for line in lines)
            return {
                bucket: sum(
                    line.num_of(name, priority)
                    if name == flow
                    else min(own, line.num_of(name, priority))
                    for name in line.flows()
                )
                for bucket, line in self._lines.items()
            }

    def oldest_s(self) -> float:
        """Seconds that the oldest entry has waited; 0 where none waits."""
        with self._changed:
            oldest = min((line.oldest for line in self._lines.values()), default=None)
        return 0.0 if oldest is None else self._clock() - oldest

    def _enter(self, item: WorkItem, now: float) -> Entry:
        self._shares.come(item.flow)
        rank = now + (item.priority - 1) * self._rules.priority_step_s
        number = self._next_number
        self._next_number += 1
        entry = Entry(number=number, item=item, enqueued=now, rank=(rank, number))
        self._lines.setdefault(item.bucket, WaitingLine()).add(entry)
        return entry

    def _turn(self, now: float, entry: Entry) -> Turn:
        """Least first: the more urgent, then whose flow has had less, then who came first."""
        item = entry.item
        num_steps = int((now - entry.enqueued) / self._rules.priority_step_s)
        return max(1, item.priority - num_steps), self._shares.had(item.flow), entry.rank

    def _next_of(self, buckets: Iterable[Bucket], now: float) -> Bucket:
        turn = partial(self._turn, now)
        return min(buckets, key=lambda bucket: turn(self._lines[bucket].first(turn)))

    def _remove(self, entry: Entry) -> bool:
        """Take an entry out of its line; False where it waits no more."""
        line = self._lines.get(entry.item.bucket)
        if line is None or not line.remove(entry):
            return False
        self._shares.go(entry.item.flow)
        if not line:
            del self._lines[entry.item.bucket]
        return True

    def _form(self) -> tuple[Batch | None, list[Entry], float]:
        """The next batch, the expired entries met on the way, and when a batch is due. Locked."""
        now = self._clock()
        expired: list[Entry] = []
        while due := [b for b, line in self._lines.items() if self._due(b, line) <= now]:
            bucket = self._next_of(due, now)
            entries = self._pick(bucket, now, expired)
            if entries:
                return Batch(bucket=bucket, entries=tuple(entries), taken=now), expired, now
        return None, expired, min(self._dues(), default=math.inf)

    def _dues(self) -> Iterator[float]:
        return (self._due(bucket, line) for bucket, line in self._lines.items())

    def _due(self, bucket: Bucket, line: WaitingLine) -> float:
        """When a batch of this bucket is formed at the latest: at once, unless it is to fill."""
        limits = self._rules.limits[bucket.kind]
        if self._rules.max_wait_s == 0 or limits.is_full(len(line), line.cost):
            return -math.inf
        return line.oldest + self._rules.max_wait_s

    def _pick(self, bucket: Bucket, now: float, expired: list[Entry]) -> list[Entry]:
        limits = self._rules.limits[bucket.kind]
        line = self._lines[bucket]
        max_items = self._share(len(line))
        picked: list[Entry] = []
        cost = 0
        while line and len(picked) < max_items:
            entry = line.first(partial(self._turn, now))
            if not limits.fits(len(picked) + 1, cost + entry.item.cost):
                break
            is_waited_for = entry.future.set_running_or_notify_cancel()
            is_late = entry.item.deadline <= now
            if is_waited_for and not is_late:
                self._shares.serve(entry.item.flow, entry.item.cost)
                picked.append(entry)
                cost += entry.item.cost
            elif is_waited_for:
                expired.append(entry)
            self._remove(entry)
        return picked

    def _peek(self) -> list[Entry]:
        """What `_pick` would pick for a lane that asked now. Locked."""
        if not self._lines:
            return []
        now = self._clock()
        bucket = self._next_of(self._lines, now)
        limits = self._rules.limits[bucket.kind]
        picked: list[Entry] = []
        cost = 0
        for entry in self._in_turn(self._lines[bucket], now):
            if not limits.fits(len(picked) + 1, cost + entry.item.cost):
                break
            if not entry.future.cancelled() and entry.item.deadline > now:
                picked.append(entry)
                cost += entry.item.cost
        return picked

    def _in_turn(self, line: WaitingLine, now: float) -> list[Entry]:
        """A line's entries as they would be served if nothing else came."""
        turns: list[tuple[Turn, Entry]] = []
        taken: Total[str] = Total()
        for entry in line:
            level, had, rank = self._turn(now, entry)
            turns.append(((level, had + taken[entry.item.flow], rank), entry))
            taken[entry.item.flow] += entry.item.cost
        return [entry for _, entry in sorted(turns, key=lambda pair: pair[0])]

    def _share(self, num_waiting: int) -> int:
        """How many of these the lane that asks may take, where free lanes share."""
        if not self._rules.share_evenly:
            return num_waiting
        return -(-num_waiting // max(1, self._num_idle))

    def _drop(self, entry: Entry, future: "Future[Completed]") -> None:
        """Forget an entry whose caller cancelled it before it was taken."""
        if not future.cancelled():
            return
        self.count_abandoned(1, entry.item.deadline)
        with self._changed:
            self._remove(entry)

    def _answer_expired(self, expired: Sequence[Entry]) -> None:
        for entry in expired:
            self.abandoned.inc("deadline")
            settle(entry.future, error=deadline_exceeded())
