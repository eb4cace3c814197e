"""Admission: one ticket for each request, one `take` of all that it needs, one `release`.

A request enters, holds the bytes of its body as they arrive, and takes the rest at once when its
image headers are known: patches of a model's queue, and bytes for decoding and for the answer.

- Bytes of bodies are refused when their budget, or the share of their host, is full. They never
  wait.
- Patches beyond the queue are refused. Requests of streams wait for them.
- Bytes of work are waited for, in order of arrival, until the deadline. A request that waits holds
  its body only, so no two requests wait for each other.

Each take adds to the ticket, and `release` gives all of it back. Thread-safe: the event loops of
both transports use one admission.
"""

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from service.call import Call
from service.errors import Overloaded, ServiceError, Unavailable
from service.monitoring.metrics import Metrics
from service.patch_budget import HELD_TO_FREE, PatchBudget

UNAVAILABLE_RETRY_S: Final = 2.0
MEMORY_RETRY_S: Final = 1.0
# Most requests that wait at once.
MAX_WAITING: Final = 256


class ServerState(Enum):
    """The life of a server, in order."""

    STARTING = "starting"
    OPEN = "open"
    # Readiness fails, but requests are still accepted until load balancers have noticed.
    STOPPING = "stopping"
    DRAINING = "draining"


class Ticket:
    """What one request holds, from its arrival until its answer is sent.

    Attributes:
        num_body_bytes: Bytes of its body.
        num_bytes: Bytes for decoding and for the answer.
        num_patches: Patches, of `budget`.
        budget: Of its model; None before `take`.
        leave: Ends the request of its API key.
        on_taken: Called once it has taken what it needs.
    """

    def __init__(self, admission: "Admission", call: Call) -> None:
        self._admission = admission
        self._is_held = True
        self.call = call
        self.budget: PatchBudget | None = None
        self.leave: Callable[[], None] = lambda: None
        self.on_taken: Callable[[], None] = lambda: None
        self.num_body_bytes = self.num_bytes = self.num_patches = 0

    def hold_body(self, num_bytes: int) -> None:
        """Hold so many bytes of the body in total.

        Raises:
            Overloaded: The bytes of all bodies, or of those of its host, are at their limit.
        """
        if num_bytes > self.num_body_bytes:
            self.call.num_bytes = num_bytes
            self._admission._hold_body(self, num_bytes)

    def release(self) -> None:
        """Give everything back; later calls have no effect."""
        if self._is_held:
            self._is_held = False
            # Cycles that would wait for the garbage collector.
            self.call.ticket = self.call.limit = None
            self._admission._release(self)
            self.leave()


@dataclass(slots=True, eq=False)
class _Waiter:
    """A request that waits to take. Belongs to the event loop on which it was made."""

    ticket: Ticket
    budget: PatchBudget
    num_patches: int
    num_bytes: int
    is_over: bool = False
    error: ServiceError | None = None
    woken: asyncio.Future[None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    @property
    def is_stream(self) -> bool:
        """Whether it also waits for patches."""
        return self.ticket.call.waits_for_capacity

    @property
    def fits_patches(self) -> bool:
        """Whether its patches fit now."""
        return self.budget.fits(self.num_patches, self.ticket.call)

    def end(self, error: ServiceError | None = None) -> None:
        """Wake the coroutine, from any thread."""
        self.is_over, self.error = True, error
        self.woken.get_loop().call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        if not self.woken.done():
            self.woken.set_result(None)


class Admission:
    """Decides which requests run, and counts what they hold; one for each process."""

    def __init__(self, metrics: Metrics, *, max_body_bytes: int, max_work_bytes: int) -> None:
        """Accept nothing until `open`.

        Args:
            metrics: Counts refusals.
            max_body_bytes: Most bytes of all bodies together.
            max_work_bytes: Most bytes for decoding and for answers together.
        """
        self.state = ServerState.STARTING
        self.num_requests = self.num_admitted = 0
        self.num_body_bytes = self.num_work_bytes = 0
        self.max_work_bytes = max_work_bytes
        self._max_body_bytes = max_body_bytes
        self._metrics = metrics
        self._bodies_of: Counter[str] = Counter()  # bytes of bodies by host
        self._waiting: list[_Waiter] = []
        self._lock = threading.RLock()
        self._idle = threading.Condition(self._lock)
        metrics.inflight.set_function(lambda: self.num_admitted)

    @property
    def is_open(self) -> bool:
        """Whether requests are accepted."""
        return self.state in (ServerState.OPEN, ServerState.STOPPING)

    @property
    def is_ready(self) -> bool:
        """Whether load balancers should send requests."""
        return self.state is ServerState.OPEN

    @property
    def is_stopping(self) -> bool:
        """Whether the drain has begun."""
        return self.state in (ServerState.STOPPING, ServerState.DRAINING)

    def open(self) -> None:
        """Accept requests, unless the server is stopping already."""
        with self._lock:
            if self.state is ServerState.STARTING:
                self.state = ServerState.OPEN

    def announce_drain(self) -> None:
        """Fail readiness and keep accepting requests; a server that never opened drains at once."""
        with self._lock:
            self.state = ServerState.STOPPING if self.is_ready else ServerState.DRAINING

    def drain(self) -> None:
        """Refuse new requests; admitted ones may finish."""
        with self._lock:
            self.state = ServerState.DRAINING

    def wait_idle(self, timeout_s: float) -> bool:
        """Block until no request is in progress; False after the timeout."""
        with self._idle:
            return self._idle.wait_for(lambda: self.num_requests == 0, timeout_s)

    def enter(self, call: Call) -> Ticket:
        """The ticket of a request that has arrived; it is also found as `call.ticket`."""
        call.ticket = ticket = Ticket(self, call)
        with self._lock:
            self.num_requests += 1
        return ticket

    def check_open(self) -> None:
        """Refuse a request before its body is read.

        Raises:
            Unavailable: The server is starting or draining.
        """
        if not self.is_open:
            self._metrics.rejected.labels(self.state.value).inc()
            raise unavailable(self.state)

    async def take(
        self, call: Call, budget: PatchBudget, *, num_patches: int, num_bytes: int = 0
    ) -> None:
        """Take all that a request needs, before any work.

        An image may need more bytes than there are in all: it is then decoded alone.

        Args:
            call: Of a request that has entered.
            budget: Of its model.
            num_patches: Exact cost of its images and texts.
            num_bytes: The larger of what decoding and the answer take; 0 if both are small.

        Raises:
            Unavailable: The server drains, or no lane is healthy.
            Overloaded: The queue is full, or too many requests wait.
            RequestTooLarge: It has more patches than the whole queue.
            DeadlineExceeded: The deadline cannot be met.
        """
        with call.stage("admit"):
            await self._take(call, budget, num_patches, min(num_bytes, self.max_work_bytes))

    async def _take(
        self, call: Call, budget: PatchBudget, num_patches: int, num_bytes: int
    ) -> None:
        self.check_open()
        ticket = call.ticket
        assert ticket is not None
        with self._lock:
            is_stream = call.waits_for_capacity
            if not is_stream and budget.is_full(call.caller):
                raise budget.full()  # before the deadline: a full queue is the better reason
            budget.check(num_patches, call)
            waiter = _Waiter(ticket, budget, num_patches, num_bytes)
            if not is_stream and (not waiter.fits_patches or self._is_reserved(budget)):
                raise budget.full()
            self._waiting.append(waiter)
            self._admit()
            if not waiter.is_over and len(self._waiting) > MAX_WAITING:
                self._waiting.remove(waiter)
                raise self._memory_full("images and answers", code="work_memory_full")
        try:
            if not waiter.is_over:
                await waiter.woken
        finally:
            with self._lock:
                if not waiter.is_over:  # the request leaves
                    self._waiting.remove(waiter)
                    self._admit()
        if waiter.error is not None:
            raise waiter.error
        ticket.on_taken()

    def _admit(self) -> None:
        """Admit requests that wait, in order. Needs the lock.

        A request that waits for bytes stops all others that need some. A request of a stream that
        waits for patches stops none.
        """
        is_blocked = False
        for waiter in list(self._waiting):
            if is_blocked and waiter.num_bytes:
                continue
            if not waiter.fits_patches:
                if waiter.is_stream:
                    continue
                self._waiting.remove(waiter)
                waiter.end(waiter.budget.full())
            elif waiter.num_bytes and self.num_work_bytes + waiter.num_bytes > self.max_work_bytes:
                is_blocked = True
            else:
                self._waiting.remove(waiter)
                self._hold(waiter)
                waiter.end()

    def _is_reserved(self, budget: PatchBudget) -> bool:
        """Whether free patches are kept for a stream that waits for more of them.

        Else small requests would starve it. One that waits for bytes keeps none.
        """
        return any(
            w.budget is budget and budget.fits_streams(w.num_patches) and not w.fits_patches
            for w in self._waiting
            if w.is_stream
        )

    def _hold(self, waiter: _Waiter) -> None:
        ticket, is_new = waiter.ticket, waiter.ticket.budget is None
        ticket.budget = waiter.budget
        # A request for images and texts of the Open Inference Protocol takes for each.
        ticket.num_patches += waiter.num_patches
        ticket.num_bytes += waiter.num_bytes
        waiter.budget.hold(waiter.num_patches, ticket.call, is_new=is_new)
        self.num_work_bytes += waiter.num_bytes
        self.num_admitted += is_new

    def _hold_body(self, ticket: Ticket, num_bytes: int) -> None:
        with self._lock:
            more, host = num_bytes - ticket.num_body_bytes, ticket.call.host
            held = self._bodies_of[host] if host else 0
            free = self._max_body_bytes - self.num_body_bytes - more
            if free < 0 or (held and held + more > HELD_TO_FREE * free):
                raise self._memory_full("request bodies", code="body_memory_full")
            self._count_body(ticket, more)

    def _count_body(self, ticket: Ticket, num_bytes: int) -> None:
        ticket.num_body_bytes += num_bytes
        self.num_body_bytes += num_bytes
        self._bodies_of[ticket.call.host] += num_bytes
        if not self._bodies_of[ticket.call.host]:
            del self._bodies_of[ticket.call.host]

    def _memory_full(self, what: str, *, code: str) -> Overloaded:
        self._metrics.rejected.labels(code.removesuffix("_full")).inc()
        return Overloaded(
            f"The memory for {what} is full; try again.", code=code, retry_after_s=MEMORY_RETRY_S
        )

    def _release(self, ticket: Ticket) -> None:
        with self._lock:
            self.num_requests -= 1
            self._count_body(ticket, -ticket.num_body_bytes)
            self.num_work_bytes -= ticket.num_bytes
            if ticket.budget is not None:
                ticket.budget.free(ticket.num_patches, ticket.call)
                self.num_admitted -= 1
            if self._waiting:
                self._admit()
            if not self.num_requests:
                self._idle.notify_all()


def unavailable(state: ServerState) -> Unavailable:
    """The error for a server in this state."""
    return Unavailable(
        f"The server is {state.value}; try again.", retry_after_s=UNAVAILABLE_RETRY_S
    )
