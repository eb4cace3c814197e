"""One replica as a process of a discrete-event simulation: admission, queue, batches, lanes.

What `service/models/admission.py`, `service/lanes/batch_queue.py` and the lanes do to the times of
requests, and nothing else: work is let in by patches or refused, a free lane takes what waits at
once, free lanes share, and a batch takes what its line of costs says.
"""

import itertools
import random
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import simpy

from service.lanes.latency_model import CostCurve
from service.lanes.work import BatchLimits
from service.monitoring.metrics import SECONDS

Process = Generator[simpy.Event, Any, None]
IMAGE: Final = "image"
TEXT: Final = "text"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaSpec:
    """What a replica is made of.

    Attributes:
        lanes: Batches that it computes side by side.
        costs: Seconds of a batch, by kind.
        limits: What a batch may hold, by kind.
        max_queue_cost: Patches and tokens that may be inside at once.
        service_cv: Coefficient of variation of a batch's time around its line of costs; how it is
            spread is taken to be a gamma distribution, and 0 leaves the line as it is.
    """

    lanes: int
    costs: Mapping[str, CostCurve]
    limits: Mapping[str, BatchLimits]
    max_queue_cost: int
    service_cv: float = 0.0


@dataclass(slots=True)
class Request:
    """One call: images, and texts that the cache does not know."""

    arrived: float
    items: Mapping[str, tuple[int, int]]
    num_open: int = 0
    queue_s: float = 0.0

    @property
    def cost(self) -> int:
        """Of all its items; by kind there is their number and what each costs."""
        return sum(count * cost for count, cost in self.items.values())


@dataclass(slots=True)
class Counters:
    """What a replica tells when it is scraped; numbers that only grow, and gauges."""

    answered: int = 0
    refused: int = 0
    queue_sum_s: float = 0.0
    queue_counts: list[int] = field(default_factory=lambda: [0] * (len(SECONDS) + 1))
    busy_s: float = 0.0
    inflight: int = 0
    oldest_s: float = 0.0

    def copy(self) -> "Counters":
        """As they are now."""
        return Counters(
            self.answered,
            self.refused,
            self.queue_sum_s,
            list(self.queue_counts),
            self.busy_s,
            self.inflight,
            self.oldest_s,
        )


@dataclass(slots=True)
class _Item:
    number: int
    request: Request
    cost: int
    enqueued: float


class Replica:
    """A running server.

    Args:
        env: The simulation's clock.
        spec: What it is made of.
        rng: For the spread of batches.
        on_answer: Told of every request that was answered.
    """

    def __init__(
        self,
        env: simpy.Environment,
        spec: ReplicaSpec,
        rng: random.Random,
        on_answer: Callable[[Request], None],
    ) -> None:
        self.counters = Counters()
        self._env, self._spec, self._rng, self._on_answer = env, spec, rng, on_answer
        self._lines: dict[str, deque[_Item]] = {kind: deque() for kind in spec.costs}
        self._cost = 0
        self._numbers = itertools.count()
        self._sleepers: list[simpy.Event] = []
        # Those that were woken at this moment count until they have looked.
        self._num_idle = 0
        for _ in range(spec.lanes):
            env.process(self._lane())

    def offer(self, request: Request) -> bool:
        """Let a request in as a whole, or refuse it (429)."""
        if self._cost + request.cost > self._spec.max_queue_cost:
            self.counters.refused += 1
            return False
        self._cost += request.cost
        self.counters.inflight += 1
        for kind, (count, cost) in request.items.items():
            request.num_open += count
            for _ in range(count):
                self._lines[kind].append(_Item(next(self._numbers), request, cost, self._env.now))
        for _ in range(min(request.num_open, len(self._sleepers))):
            self._sleepers.pop(0).succeed()
        return True

    def scrape(self) -> Counters:
        """What Prometheus reads now."""
        heads = [line[0].enqueued for line in self._lines.values() if line]
        self.counters.oldest_s = self._env.now - min(heads) if heads else 0.0
        return self.counters.copy()

    def _lane(self) -> Process:
        while True:
            if not any(self._lines.values()):
                wake = self._env.event()
                self._sleepers.append(wake)
                self._num_idle += 1
                yield wake
                self._num_idle -= 1
                continue
            kind, batch = self._take()
            seconds = self._seconds(kind, len(batch))
            taken = self._env.now
            yield self._env.timeout(seconds)
            self.counters.busy_s += seconds
            for item in batch:
                self._finish(item, taken)

    def _take(self) -> tuple[str, list[_Item]]:
        """The next batch: of the kind whose first item came first."""
        waiting = [kind for kind, line in self._lines.items() if line]
        kind = min(waiting, key=lambda name: self._lines[name][0].number)
        line, limits = self._lines[kind], self._spec.limits[kind]
        # Lanes that are free together share what waits; the one that asks is free too.
        share = -(-len(line) // (1 + self._num_idle))
        batch: list[_Item] = []
        cost = 0
        while line and len(batch) < share and limits.fits(len(batch) + 1, cost + line[0].cost):
            cost += line[0].cost
            batch.append(line.popleft())
        return kind, batch

    def _seconds(self, kind: str, num_items: int) -> float:
        seconds = self._spec.costs[kind].seconds(num_items)
        if not self._spec.service_cv:
            return seconds
        shape = 1 / self._spec.service_cv**2
        return seconds * self._rng.gammavariate(shape, 1 / shape)

    def _finish(self, item: _Item, taken: float) -> None:
        request = item.request
        request.queue_s = max(request.queue_s, taken - item.enqueued)
        request.num_open -= 1
        if request.num_open:
            return
        self._cost -= request.cost
        told = self.counters
        told.inflight -= 1
        told.answered += 1
        told.queue_sum_s += request.queue_s
        told.queue_counts[bisect_left(SECONDS, request.queue_s)] += 1
        self._on_answer(request)


def plain_spec(lanes: int, service_s: float, *, service_cv: float = 0.0) -> ReplicaSpec:
    """Lanes that take one item at a time and refuse nobody: what closed forms speak of."""
    return ReplicaSpec(
        lanes=lanes,
        costs={IMAGE: CostCurve(0.0, service_s)},
        limits={IMAGE: BatchLimits(max_items=1, max_cost=1)},
        max_queue_cost=2**63,
        service_cv=service_cv,
    )
