"""The door: a request is let in whole, by its cost, or refused before any work is done for it.

Cost is counted in patches over all requests that are inside, so it bounds the queue behind the door
too. Thread-safe: both transports' loops come here.
"""

import threading
from enum import Enum
from types import TracebackType
from typing import Self

from service.call import Call
from service.errors import DeadlineExceeded, Overloaded, RequestTooLarge, Unavailable
from service.observability import Metrics

OVERLOADED_RETRY_S = 1.0
UNAVAILABLE_RETRY_S = 2.0


class DoorState(Enum):
    """Whether requests are let in."""

    STARTING = "starting"
    OPEN = "open"
    DRAINING = "draining"


class Ticket:
    """The room that one admitted request takes up, until its `with` block ends."""

    def __init__(self, admission: "Admission", cost: int) -> None:
        self._admission = admission
        self.cost = cost

    def resize(self, cost: int) -> None:
        """Correct the cost once it is known exactly; what is inside is never refused."""
        self._admission._give_back(self.cost - cost)
        self.cost = cost

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
    """Counts what is inside and decides who else fits."""

    def __init__(self, max_cost: int, metrics: Metrics) -> None:
        self.state = DoorState.STARTING
        self._max_cost = max_cost
        self._cost = 0
        self._num_inside = 0
        self._changed = threading.Condition()
        self._metrics = metrics
        metrics.watch_inflight(lambda: self._num_inside)

    @property
    def is_open(self) -> bool:
        """Whether requests are let in at all."""
        return self.state is DoorState.OPEN

    def open(self) -> None:
        """Let requests in, unless draining has begun."""
        if self.state is DoorState.STARTING:
            self.state = DoorState.OPEN

    def drain(self) -> None:
        """Let nobody in any more; who is inside may finish."""
        self.state = DoorState.DRAINING

    def check(self) -> None:
        """Refuse at once where nobody can be let in, so that the body need not even be read.

        Raises:
            Unavailable: Starting or draining.
            Overloaded: The queue is full.
        """
        if not self.is_open:
            self._metrics.rejected.labels(self.state.value).inc()
            raise Unavailable(
                f"The server is {self.state.value}; try again.", retry_after_s=UNAVAILABLE_RETRY_S
            )
        if self._cost >= self._max_cost:
            raise self._full()

    def admit(self, cost: int, call: Call) -> Ticket:
        """Let a whole request in, or refuse it.

        Args:
            cost: In patches, for all pictures and texts of the request together.
            call: Whose deadline must not have passed.

        Raises:
            Unavailable: Starting or draining.
            Overloaded: It does not fit beside what is inside now.
            RequestTooLarge: It would not fit into an empty server.
            DeadlineExceeded: The deadline has passed.
        """
        self.check()
        try:
            call.remaining_s()
        except DeadlineExceeded:
            self._metrics.rejected.labels("deadline").inc()
            raise
        if cost > self._max_cost:
            self._metrics.rejected.labels("too_large").inc()
            raise RequestTooLarge(
                f"The request costs {cost} patches, more than the whole queue of "
                f"{self._max_cost}; split it."
            )
        with self._changed:
            if self._cost + cost > self._max_cost:
                raise self._full()
            self._cost += cost
            self._num_inside += 1
        return Ticket(self, cost)

    def wait_idle(self, timeout_s: float) -> bool:
        """Block until nobody is inside; False where the time-out came first."""
        with self._changed:
            return self._changed.wait_for(lambda: self._num_inside == 0, timeout_s)

    def _full(self) -> Overloaded:
        self._metrics.rejected.labels("queue_full").inc()
        return Overloaded(
            "The queue has no room for this request; try again.", retry_after_s=OVERLOADED_RETRY_S
        )

    def _give_back(self, cost: int) -> None:
        with self._changed:
            self._cost -= cost

    def _leave(self, ticket: Ticket) -> None:
        with self._changed:
            self._cost -= ticket.cost
            self._num_inside -= 1
            self._changed.notify_all()
