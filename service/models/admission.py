"""Per-model admission by cost in patches, with a wait queue for stream requests."""

import asyncio
import math
import threading
import time
from collections import deque
from types import TracebackType
from typing import Final, Protocol, Self

from service.call import Call, Clock, deadline_exceeded
from service.errors import DeadlineExceeded, Overloaded, RequestTooLarge, ServiceError
from service.lanes.work import Kind
from service.lanes.worker import device_unhealthy
from service.monitoring.metrics import Metrics, ModelCounter
from service.request_gate import RequestGate

# How fast work gets done, measured at the exit, and so how long what is inside needs.

MEMORY_S: Final = 3.0


class Pace:
    """Cost that left in each second in which something was inside. Not thread-safe.

    Whatever holds work up is in it: the device, decoding, the network. Times are monotonic seconds.
    """

    def __init__(self) -> None:
        self._cost = 0.0
        self._busy_s = 0.0
        self._since = 0.0

    def begin(self, now: float) -> None:
        """Somebody came in while nobody was inside."""
        self._since = now

    def leave(self, cost: int, now: float) -> None:
        """Work of this cost left."""
        passed_s = now - self._since
        self._since = now
        kept = math.exp(-passed_s / MEMORY_S)
        self._cost = self._cost * kept + cost
        self._busy_s = self._busy_s * kept + passed_s

    def seconds(self, cost: int) -> float | None:
        """How long work of this cost needs to leave; None where nothing was measured yet."""
        if self._cost <= 0 or self._busy_s <= 0:
            return None
        return cost * self._busy_s / self._cost


# Callers who wait for room in a model instead of being refused: the requests of streams.
#
# They come in by turns, and have half of the room at the most: the other half is for those who
# cannot wait. Whoever cannot wait takes nothing that the first in line is about to get.


class Waiter:
    """One who waits; belongs to the event loop that makes it."""

    __slots__ = ("_loop", "_woken", "cost", "is_in")

    def __init__(self, cost: int) -> None:
        self.cost = cost
        self.is_in = False
        self._loop = asyncio.get_running_loop()
        self._woken: asyncio.Future[None] = self._loop.create_future()

    def let_in(self) -> None:
        """Say so, from any thread."""
        self.is_in = True
        self._loop.call_soon_threadsafe(self._wake)

    async def wait(self, limit_s: float) -> None:
        """Return once it is in.

        Raises:
            TimeoutError: That takes longer than the limit.
        """
        if not self.is_in:
            async with asyncio.timeout(limit_s):
                await self._woken

    def _wake(self) -> None:
        if not self._woken.done():
            self._woken.set_result(None)


class PatientLine:
    """Who waits, and what those who have waited take up by now. Not thread-safe."""

    def __init__(self, max_cost: int) -> None:
        self._max_cost = max_cost // 2
        self._cost = 0
        self._waiting: deque[Waiter] = deque()

    @property
    def is_next(self) -> bool:
        """Whether the next free room is for the first in line."""
        return bool(self._waiting) and self._fits(self._waiting[0].cost)

    def join(self, waiter: Waiter) -> None:
        """Wait behind everybody else."""
        self._waiting.append(waiter)

    def give_up(self, waiter: Waiter) -> None:
        """Wait no more."""
        self._waiting.remove(waiter)

    def come_in(self, free: int) -> Waiter | None:
        """The first in line where there is room for it, which it then takes; None where not."""
        if not self.is_next or self._waiting[0].cost > free:
            return None
        waiter = self._waiting.popleft()
        self._cost += waiter.cost
        waiter.let_in()
        return waiter

    def resize(self, difference: int) -> None:
        """One who is in takes up so much more, or less; all of it when it leaves."""
        self._cost += difference

    def _fits(self, cost: int) -> bool:
        return self._cost == 0 or self._cost + cost <= self._max_cost


# What one model takes on: a request is admitted whole, by its cost, or refused before any work.
#
# Cost is counted in patches over all requests of the model that are inside, so it bounds the queue
# behind it too. A request whose deadline cannot be met, by the measured cost of what is ahead of
# it, is refused as well. The requests of streams wait for room instead, until their deadline.
# Thread-safe: both transports' loops come here.

# Callers are told to come back no sooner and no later than this, and this while nothing is known.
MIN_RETRY_S: Final = 0.1
MAX_RETRY_S: Final = 30.0
FIRST_RETRY_S: Final = 1.0


class Device(Protocol):
    """What admission asks of the lanes behind it; see `service.lanes.batching.Batcher`."""

    @property
    def is_ready(self) -> bool:
        """Whether any lane takes work."""

    def done_in_s(self, cost: int, priority: int, flow: str, kind: Kind | None) -> float:
        """Seconds that new work takes at the least until it is done."""


class Ticket:
    """The room that one admitted request takes up, until its `with` block ends.

    Attributes:
        cost: What it takes up.
        wanted: What it turned out to need.
        is_patient: Whether it waited for its room, or would have.
    """

    def __init__(self, admission: "Admission", cost: int, *, is_patient: bool = False) -> None:
        self._admission = admission
        self.cost = self.wanted = cost
        self.is_patient = is_patient

    def resize(self, cost: int) -> None:
        """Correct the cost once it is known exactly, before any work is done.

        Raises:
            Overloaded: It is more than was thought, and does not fit beside what is inside now.
            RequestTooLarge: It would not fit into an empty queue.
        """
        self.wanted = cost
        self._admission._resize(self, cost)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._admission._leave(self)


class Admission:
    """Counts what is inside one model and decides who else fits."""

    def __init__(
        self, max_cost: int, metrics: Metrics, device: Device, clock: Clock = time.monotonic
    ) -> None:
        self._max_cost = max_cost
        self._device = device
        self._clock = clock
        self._cost = 0
        self._num_inside = 0
        self._patient = PatientLine(max_cost)
        self._pace = Pace()
        self._changed = threading.Condition()
        self.rejected = ModelCounter(metrics.rejected)

    @property
    def cost(self) -> int:
        """What all requests inside cost together."""
        return self._cost

    @property
    def max_cost(self) -> int:
        """What they may cost together."""
        return self._max_cost

    @property
    def is_full(self) -> bool:
        """Whether not even the smallest request fits."""
        return self._cost >= self._max_cost

    def check(self) -> None:
        """Refuse where nothing fits, so that the body need not even be read.

        Raises:
            Unavailable: No lane is well.
            Overloaded: The queue is full.
        """
        self._check_well()
        if self.is_full:
            raise self._full()

    def admit(self, cost: int, call: Call, kind: Kind | None = None) -> Ticket:
        """Let a whole request in, or refuse it.

        Args:
            cost: In patches, for all images and texts of the request together.
            call: With its deadline and priority.
            kind: Of all its items, where they are of one; what they cost is then known better.

        Raises:
            Unavailable: No lane is well.
            Overloaded: It does not fit beside what is inside now.
            RequestTooLarge: It would not fit into an empty queue.
            DeadlineExceeded: The deadline has passed, or cannot be met.
        """
        self.check()
        self._check_deadline(cost, call, kind)
        with self._changed:
            self._check_size(cost)
            if self._cost + cost > self._max_cost or self._patient.is_next:
                raise self._full()
            self._enter(cost)
        return Ticket(self, cost)

    async def admit_patiently(self, cost: int, call: Call, kind: Kind | None = None) -> Ticket:
        """Let a whole request in as soon as there is room for it, in turn.

        Args:
            cost: As for `admit`, as `call` and `kind` are.
            call: It waits until its deadline.
            kind: What it costs is known better with it.

        Raises:
            Unavailable: No lane is well.
            RequestTooLarge: It would not fit into an empty queue.
            DeadlineExceeded: The deadline has passed, also while it waited, or cannot be met.
        """
        self._check_well()
        self._check_deadline(cost, call, kind)
        waiter = Waiter(cost)
        with self._changed:
            self._check_size(cost)
            self._patient.join(waiter)
            self._let_in()
        try:
            await waiter.wait(call.remaining_s())
        except BaseException as error:
            self._give_up(waiter)
            if isinstance(error, TimeoutError):
                raise self._refused("deadline", deadline_exceeded()) from None
            raise
        return Ticket(self, cost, is_patient=True)

    def wait_idle(self, timeout_s: float) -> bool:
        """Block until no request of this model is inside; False where the time-out came first."""
        with self._changed:
            return self._changed.wait_for(lambda: self._num_inside == 0, timeout_s)

    def retry_after_s(self) -> float:
        """Seconds until what is inside now has left, by the pace at which work leaves."""
        needed_s = self._pace.seconds(self._cost)
        if needed_s is None:
            return FIRST_RETRY_S
        return min(max(needed_s, MIN_RETRY_S), MAX_RETRY_S)

    def _check_deadline(self, cost: int, call: Call, kind: Kind | None) -> None:
        try:
            left_s = call.remaining_s()
        except DeadlineExceeded as error:
            raise self._refused("deadline", error) from None
        needed_s = self._device.done_in_s(cost, call.priority, call.flow, kind)
        if needed_s > left_s:
            late = DeadlineExceeded(
                f"The deadline is {left_s:.3f} s away, and with what is ahead of it this takes at "
                f"least {needed_s:.3f} s; allow more time, or come back later.",
                code="deadline_too_near",
            )
            raise self._refused("deadline", late)

    def _check_well(self) -> None:
        if not self._device.is_ready:
            raise self._refused("unhealthy", device_unhealthy())

    def _check_size(self, cost: int) -> None:
        if cost > self._max_cost:
            large = RequestTooLarge(
                f"The request costs {cost} patches, more than the whole queue of "
                f"{self._max_cost}; split it."
            )
            raise self._refused("too_large", large)

    def _full(self, *, is_final: bool = True) -> Overloaded:
        full = Overloaded(
            "The queue has no room for this request; try again.", retry_after_s=self.retry_after_s()
        )
        if is_final:
            self._refused("queue_full", full)
        return full

    def _refused(self, reason: str, error: ServiceError) -> ServiceError:
        self.rejected.inc(reason)
        return error

    def _enter(self, cost: int) -> None:
        if not self._num_inside:
            self._pace.begin(self._clock())
        self._cost += cost
        self._num_inside += 1

    def _let_in(self) -> None:
        """Those who wait and now fit."""
        while (waiter := self._patient.come_in(self._max_cost - self._cost)) is not None:
            self._enter(waiter.cost)

    def _give_up(self, waiter: Waiter) -> None:
        """Who waited, or has just been let in, leaves."""
        with self._changed:
            if waiter.is_in:
                self._leave(Ticket(self, waiter.cost, is_patient=True))
            else:
                self._patient.give_up(waiter)
                self._let_in()

    def _resize(self, ticket: Ticket, cost: int) -> None:
        more = cost - ticket.cost
        with self._changed:
            self._check_size(cost)
            if more > 0 and self._cost + more > self._max_cost:
                # One who is patient comes again, and asks for as much as it needs.
                raise self._full(is_final=not ticket.is_patient)
            self._cost += more
            ticket.cost = cost
            if ticket.is_patient:
                self._patient.resize(more)
            if more < 0:
                self._let_in()

    def _leave(self, ticket: Ticket) -> None:
        with self._changed:
            self._cost -= ticket.cost
            self._num_inside -= 1
            self._pace.leave(ticket.cost, self._clock())
            if ticket.is_patient:
                self._patient.resize(-ticket.cost)
            self._let_in()
            self._changed.notify_all()


# The room of one admitted request, at the gate and in its model, until its block ends.


class Admitted:
    """Enters gate and model, leaves them when the block ends, and ends it at the deadline.

    Written out instead of generated, for every request passes through it.
    """

    __slots__ = ("_admission", "_call", "_cost", "_gate", "_kind", "_limit", "_ticket")

    def __init__(
        self,
        gate: RequestGate,
        admission: Admission,
        *,
        cost: int,
        call: Call,
        kind: Kind | None = None,
    ) -> None:
        self._gate, self._admission = gate, admission
        self._cost, self._call, self._kind = cost, call, kind
        self._limit: asyncio.Timeout
        self._ticket: Ticket

    async def __aenter__(self) -> Ticket:
        call = self._call
        with call.stage("admit"):
            self._gate.enter()
            try:
                self._ticket = await self._admit()
            except BaseException:
                self._gate.leave()
                raise
        self._limit = asyncio.timeout_at(
            asyncio.get_running_loop().time() + max(0.0, call.deadline - call.clock())
        )
        await self._limit.__aenter__()
        return self._ticket

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self._limit.__aexit__(kind, error, traceback)
        except TimeoutError:
            raise deadline_exceeded() from None
        finally:
            self._ticket.__exit__(kind, error, traceback)
            self._gate.leave()
            if isinstance(error, Overloaded):
                self._call.known_cost = self._ticket.wanted

    async def _admit(self) -> Ticket:
        call = self._call
        if not call.waits_for_capacity:
            return self._admission.admit(self._cost, call, self._kind)
        cost = max(self._cost, call.known_cost)
        return await self._admission.admit_patiently(cost, call, self._kind)
