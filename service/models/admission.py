"""Admission to one model by cost in patches, with a wait queue for stream requests.

A request is admitted as a whole or rejected before any work. The cost of all admitted requests of
a model is bounded, and with it the queue behind it. A request whose deadline cannot be met, by the
measured cost of the work ahead of it, is rejected too. Requests of streams wait for capacity
instead, until their deadline. Thread-safe: the event loops of both transports use it.
"""

import asyncio
import math
import threading
import time
from collections import Counter, deque
from types import TracebackType
from typing import Final, Protocol

from service.call import Call, Clock, deadline_exceeded
from service.errors import DeadlineExceeded, Overloaded, RequestTooLarge, ServiceError
from service.lanes.work import Kind
from service.lanes.worker import device_unhealthy
from service.monitoring.metrics import Metrics, ModelCounter
from service.request_gate import RequestGate

# Bounds of `retry_after_s`, and its value before anything was measured.
MIN_RETRY_S: Final = 0.1
MAX_RETRY_S: Final = 30.0
FIRST_RETRY_S: Final = 1.0
# A flow that already has work may hold this many times what it leaves free: the lanes share fairly
# between flows, but a flood over one protocol filled the whole queue, and 80 % of the other
# protocol's calls were refused. So one flow leaves an eighth, two leave a fifteenth.
# Source: dynamic thresholds (A. Choudhury, E. Hahne, 1998).
HELD_TO_FREE: Final = 7
# Time constant of the exponential average in `Throughput`.
THROUGHPUT_MEMORY_S: Final = 3.0
STREAM_FLOW: Final = "stream"


class Throughput:
    """Cost finished per busy second, as an exponential average. Not thread-safe.

    It is measured where requests leave, so that it includes whatever delays them: the device,
    decoding, the network. Idle time does not count. Times are monotonic seconds.
    """

    def __init__(self) -> None:
        self._cost = 0.0
        self._busy_s = 0.0
        self._since = 0.0

    def begin(self, now: float) -> None:
        """The first request after an idle period was admitted."""
        self._since = now

    def finish(self, cost: int, now: float) -> None:
        """A request of this cost has finished."""
        passed_s = now - self._since
        self._since = now
        kept = math.exp(-passed_s / THROUGHPUT_MEMORY_S)
        self._cost = self._cost * kept + cost
        self._busy_s = self._busy_s * kept + passed_s

    def seconds(self, cost: int) -> float | None:
        """Expected time to finish work of this cost; None before the first measurement."""
        if self._cost <= 0 or self._busy_s <= 0:
            return None
        return cost * self._busy_s / self._cost


class CapacityWaiter:
    """A stream request in the wait queue. Belongs to the event loop on which it was made."""

    __slots__ = ("_loop", "_woken", "cost", "is_admitted")

    def __init__(self, cost: int) -> None:
        self.cost = cost
        self.is_admitted = False
        self._loop = asyncio.get_running_loop()
        self._woken: asyncio.Future[None] = self._loop.create_future()

    def admit(self) -> None:
        """Wake the waiting coroutine; from any thread."""
        self.is_admitted = True
        self._loop.call_soon_threadsafe(self._wake)

    async def wait(self, limit_s: float) -> None:
        """Return once the request is admitted.

        Raises:
            TimeoutError: The limit has passed.
        """
        if not self.is_admitted:
            async with asyncio.timeout(limit_s):
                await self._woken

    def _wake(self) -> None:
        if not self._woken.done():
            self._woken.set_result(None)


class StreamWaitQueue:
    """Stream requests that wait for capacity, in FIFO order. Not thread-safe.

    Stream requests use at most half of the capacity, because the other half is for requests that
    cannot wait.
    """

    def __init__(self, max_cost: int) -> None:
        self._max_cost = max_cost // 2
        self._admitted_cost = 0
        self._waiting: deque[CapacityWaiter] = deque()

    @property
    def is_waited_for(self) -> bool:
        """Whether there is a waiter."""
        return bool(self._waiting)

    @property
    def has_next(self) -> bool:
        """Whether free capacity is reserved for the first waiter.

        Without the reservation small requests that cannot wait would starve a large one.
        """
        return bool(self._waiting) and self._fits(self._waiting[0].cost)

    def add(self, waiter: CapacityWaiter) -> None:
        """Append a waiter."""
        self._waiting.append(waiter)

    def remove(self, waiter: CapacityWaiter) -> None:
        """Remove a waiter that was not admitted."""
        self._waiting.remove(waiter)

    def admit_next(self, free_cost: int) -> CapacityWaiter | None:
        """Admit the first waiter if it fits into the free capacity; None if it does not."""
        if not self.has_next or self._waiting[0].cost > free_cost:
            return None
        waiter = self._waiting.popleft()
        self._admitted_cost += waiter.cost
        waiter.admit()
        return waiter

    def resize(self, difference: int) -> None:
        """The cost of an admitted stream request changed; it finishes with minus its cost."""
        self._admitted_cost += difference

    def _fits(self, cost: int) -> bool:
        return self._admitted_cost == 0 or self._admitted_cost + cost <= self._max_cost


class LoadForecast(Protocol):
    """What admission needs from the lanes of a model; see `service.lanes.batching.Batcher`."""

    @property
    def is_ready(self) -> bool:
        """Whether any lane takes work."""

    def done_in_s(self, cost: int, priority: int, flow: str, kind: Kind | None) -> float | None:
        """Least time in seconds until new work would be done; None if no lane takes work."""


class Ticket:
    """The capacity that one admitted request holds, until `release`. Thread-safe.

    Attributes:
        cost: In patches.
        flow: The flow of its call.
        is_held: False after `release`.
        is_stream: Whether the request counts against the share of streams.
    """

    __slots__ = ("_admission", "_call", "_kind", "cost", "flow", "is_held", "is_stream")

    def __init__(self, admission: "Admission", cost: int, call: Call, kind: Kind | None) -> None:
        self._admission = admission
        self._call = call
        self._kind = kind
        self.cost = cost
        self.is_held = True
        self.is_stream = call.waits_for_capacity
        self.flow = STREAM_FLOW if self.is_stream else call.flow

    def resize(self, cost: int) -> bool:
        """Correct the cost once it is known exactly, before any work is done.

        Returns:
            False for a stream request that does not fit; it must call `wait_for` before any work.

        Raises:
            Overloaded: The larger cost does not fit now, and the request may not wait.
            RequestTooLarge: The cost is more than the whole capacity.
        """
        return self._admission._resize(self, cost)

    async def wait_for(self, cost: int) -> None:
        """Give the capacity back and wait until a larger cost fits.

        Raises:
            ServiceError: As `Admission.admit`.
        """
        self.release()
        await self._admission._wait(cost, self._call, self._kind)
        self.cost, self.is_held = cost, True

    def release(self) -> None:
        """Give the capacity back."""
        self._admission._release(self)


class Admission:
    """Counts the cost of the admitted requests of one model and decides which others fit."""

    def __init__(
        self, max_cost: int, metrics: Metrics, lanes: LoadForecast, clock: Clock = time.monotonic
    ) -> None:
        self._max_cost = max_cost
        self._lanes = lanes
        self._clock = clock
        self._cost = 0
        self._num_admitted = 0
        self._flow_costs: Counter[str] = Counter()
        self._streams = StreamWaitQueue(max_cost)
        self._throughput = Throughput()
        self._lock = threading.RLock()
        self.rejected = ModelCounter(metrics.rejected)

    @property
    def cost(self) -> int:
        """Cost of all admitted requests."""
        return self._cost

    @property
    def num_admitted(self) -> int:
        """Number of all admitted requests."""
        return self._num_admitted

    @property
    def max_cost(self) -> int:
        """Upper bound of `cost`."""
        return self._max_cost

    def is_full(self, flow: str) -> bool:
        """Whether not even the smallest request of a flow fits."""
        return not self._fits(1, flow)

    def check(self, flow: str) -> None:
        """Reject a request of a flow before its body is read.

        Raises:
            Unavailable: No lane is healthy.
            Overloaded: The queue is full.
        """
        if not self._lanes.is_ready:
            raise self._unhealthy()
        if self.is_full(flow):
            raise self._overloaded()

    async def admit(self, cost: int, call: Call, kind: Kind | None = None) -> Ticket:
        """Admit a whole request or reject it. A stream request waits for its turn.

        Args:
            cost: In patches, for all images and texts of the request.
            call: Gives the deadline, the priority, and whether the request waits.
            kind: The kind of all items, if they have one; the forecast is then more exact.

        Raises:
            Unavailable: No lane is healthy.
            Overloaded: There is no capacity now, and the request may not wait.
            RequestTooLarge: The cost is more than the whole capacity.
            DeadlineExceeded: The deadline has passed, or cannot be met.
        """
        if call.waits_for_capacity:
            await self._wait(cost, call, kind)
            return Ticket(self, cost, call, kind)
        needed_s = self._needed_s(cost, call, kind)
        if not self._fits(1, call.flow):  # before the deadline: a full queue is the better reason
            raise self._overloaded()
        self._check_deadline(needed_s, call)
        with self._lock:
            if cost > self._max_cost:
                raise self._too_large(cost)
            if not self._fits(cost, call.flow) or self._streams.has_next:
                raise self._overloaded()
            self._hold(cost, call.flow)
        return Ticket(self, cost, call, kind)

    def retry_after_s(self) -> float:
        """Expected time until the admitted requests have finished."""
        needed_s = self._throughput.seconds(self._cost)
        if needed_s is None:
            return FIRST_RETRY_S
        return min(max(needed_s, MIN_RETRY_S), MAX_RETRY_S)

    async def _wait(self, cost: int, call: Call, kind: Kind | None) -> None:
        """Hold capacity for a stream request as soon as its turn comes."""
        self._check_deadline(self._needed_s(cost, call, kind), call)
        waiter = CapacityWaiter(cost)
        with self._lock:
            if cost > self._max_cost:
                raise self._too_large(cost)
            self._streams.add(waiter)
            self._admit_waiting()
        try:
            await waiter.wait(call.remaining_s())
        except BaseException as error:
            self._abandon(waiter)
            if isinstance(error, TimeoutError):
                raise self._rejected("deadline", deadline_exceeded()) from None
            raise

    def _needed_s(self, cost: int, call: Call, kind: Kind | None) -> float:
        needed_s = self._lanes.done_in_s(cost, call.priority, call.flow, kind)
        if needed_s is None:
            raise self._unhealthy()
        return needed_s

    def _check_deadline(self, needed_s: float, call: Call) -> None:
        try:
            left_s = call.remaining_s()
        except DeadlineExceeded as error:
            raise self._rejected("deadline", error) from None
        if needed_s > left_s:
            late = DeadlineExceeded(
                f"The deadline is in {left_s:.3f} s, but with the current queue this request "
                f"takes at least {needed_s:.3f} s. Allow more time, or try again later.",
                code="deadline_too_near",
            )
            raise self._rejected("deadline", late)

    def _unhealthy(self) -> ServiceError:
        return self._rejected("unhealthy", device_unhealthy())

    def _too_large(self, cost: int) -> ServiceError:
        large = RequestTooLarge(
            f"The request costs {cost} patches, at most {self._max_cost} fit into the queue; "
            "split it."
        )
        return self._rejected("too_large", large)

    def _overloaded(self) -> ServiceError:
        full = Overloaded("The queue is full; try again.", retry_after_s=self.retry_after_s())
        return self._rejected("queue_full", full)

    def _rejected(self, reason: str, error: ServiceError) -> ServiceError:
        self.rejected.inc(reason)
        return error

    def _fits(self, cost: int, flow: str) -> bool:
        if self._cost + cost > self._max_cost:
            return False
        held = self._flow_costs[flow]
        # In process there is no flow, and no other caller.
        if not flow or not held:
            return True
        return held + cost <= HELD_TO_FREE * (self._max_cost - self._cost - cost)

    def _hold(self, cost: int, flow: str) -> None:
        if not self._num_admitted:
            self._throughput.begin(self._clock())
        self._cost += cost
        self._flow_costs[flow] += cost
        self._num_admitted += 1

    def _admit_waiting(self) -> None:
        while (waiter := self._streams.admit_next(self._max_cost - self._cost)) is not None:
            self._hold(waiter.cost, STREAM_FLOW)

    def _abandon(self, waiter: CapacityWaiter) -> None:
        """A stream request ended its wait; it may have been admitted at the same moment."""
        with self._lock:
            if waiter.is_admitted:
                self._free(waiter.cost, STREAM_FLOW, is_stream=True)
            else:
                self._streams.remove(waiter)
                self._admit_waiting()

    def _resize(self, ticket: Ticket, cost: int) -> bool:
        more = cost - ticket.cost
        with self._lock:
            if not ticket.is_held:  # the request was cancelled
                return False
            if cost > self._max_cost:
                raise self._too_large(cost)
            if more > 0 and self._cost + more > self._max_cost:
                if ticket.is_stream:
                    return False
                raise self._overloaded()
            self._cost += more
            self._flow_costs[ticket.flow] += more
            ticket.cost = cost
            if ticket.is_stream:
                self._streams.resize(more)
            if more < 0:
                self._admit_waiting()
        return True

    def _release(self, ticket: Ticket) -> None:
        with self._lock:
            if ticket.is_held:
                ticket.is_held = False
                self._free(ticket.cost, ticket.flow, is_stream=ticket.is_stream)

    def _free(self, cost: int, flow: str, *, is_stream: bool) -> None:
        self._cost -= cost
        self._flow_costs[flow] -= cost
        self._num_admitted -= 1
        self._throughput.finish(cost, self._clock())
        if is_stream:
            self._streams.resize(-cost)
        if self._streams.is_waited_for:
            self._admit_waiting()


class AdmissionGuard:
    """Holds the server-wide and the per-model admission of one request while a block runs.

    The block is cancelled at the deadline. A class instead of `asynccontextmanager`: every request
    passes through it.
    """

    __slots__ = (
        *("_admission", "_call", "_cost", "_gate", "_is_late", "_kind"),
        *("_num_cancelled", "_task", "_ticket", "_timer"),
    )

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
        self._is_late = False
        self._num_cancelled = 0
        self._ticket: Ticket
        self._task: asyncio.Task[object] | None
        self._timer: asyncio.TimerHandle

    async def __aenter__(self) -> Ticket:
        call, began = self._call, self._call.clock()
        try:
            self._gate.enter()
            try:
                self._ticket = await self._admission.admit(self._cost, call, self._kind)
            except BaseException:
                self._gate.leave()
                raise
        finally:
            call.record("admit", began, call.clock())
        # What `asyncio.timeout` does, in half of its time.
        loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        if self._task is not None:
            self._num_cancelled = self._task.cancelling()
        self._timer = loop.call_later(max(0.0, call.deadline - call.clock()), self._expire)
        return self._ticket

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        task, self._task = self._task, None  # a task and its frames must not reference each other
        self._timer.cancel()
        self._ticket.release()
        self._gate.leave()
        if not self._is_late or task is None:
            return
        # Another cancellation, of a client who left, is passed on.
        if task.uncancel() <= self._num_cancelled and kind is asyncio.CancelledError:
            raise deadline_exceeded() from None

    def _expire(self) -> None:
        if self._task is not None:
            self._is_late = True
            self._task.cancel()
