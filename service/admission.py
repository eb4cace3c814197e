"""What one model takes on: a request is admitted whole, by its cost, or refused before any work.

Cost is counted in patches over all requests of the model that are inside, so it bounds the queue
behind it too. Thread-safe: both transports' loops come here.
"""

import threading
from types import TracebackType
from typing import Self

from service.call import Call
from service.errors import DeadlineExceeded, Overloaded, RequestTooLarge
from service.observability import Metrics

OVERLOADED_RETRY_S = 1.0


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
    """Counts what is inside one model and decides who else fits."""

    def __init__(self, max_cost: int, metrics: Metrics) -> None:
        self._max_cost = max_cost
        self._cost = 0
        self._num_inside = 0
        self._changed = threading.Condition()
        self._metrics = metrics

    @property
    def is_full(self) -> bool:
        """Whether not even the smallest request fits."""
        return self._cost >= self._max_cost

    def check(self) -> None:
        """Refuse where nothing fits, so that the body need not even be read.

        Raises:
            Overloaded: The queue is full.
        """
        if self.is_full:
            raise self._full()

    def admit(self, cost: int, call: Call) -> Ticket:
        """Let a whole request in, or refuse it.

        Args:
            cost: In patches, for all pictures and texts of the request together.
            call: Whose deadline must not have passed.

        Raises:
            Overloaded: It does not fit beside what is inside now.
            RequestTooLarge: It would not fit into an empty queue.
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
        """Block until no request of this model is inside; False where the time-out came first."""
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
