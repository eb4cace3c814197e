"""Whether the server takes requests, and how many are in flight."""

import threading
from enum import Enum
from types import TracebackType
from typing import Final

from service.errors import Unavailable
from service.monitoring.metrics import Metrics

UNAVAILABLE_RETRY_S: Final = 2.0


class DoorState(Enum):
    """Whether requests are let in."""

    STARTING = "starting"
    OPEN = "open"
    LEAVING = "leaving"
    DRAINING = "draining"


class Door:
    """One for the whole server: starting, open, leaving (soon to drain), draining."""

    def __init__(self, metrics: Metrics) -> None:
        self.state = DoorState.STARTING
        self._num_inside = 0
        self._changed = threading.Condition()
        self._metrics = metrics
        metrics.watch_inflight(lambda: self._num_inside)

    @property
    def is_open(self) -> bool:
        """Whether requests are let in."""
        return self.state in {DoorState.OPEN, DoorState.LEAVING}

    @property
    def is_inviting(self) -> bool:
        """Whether balancers should send requests here."""
        return self.state is DoorState.OPEN

    def open(self) -> None:
        """Let requests in, unless draining has begun."""
        with self._changed:
            if self.state is DoorState.STARTING:
                self.state = DoorState.OPEN

    def leave_soon(self) -> None:
        """Let requests in but invite none; what is not open yet drains at once."""
        with self._changed:
            is_open = self.state is DoorState.OPEN
            self.state = DoorState.LEAVING if is_open else DoorState.DRAINING

    def drain(self) -> None:
        """Let nobody in any more; who is inside may finish."""
        with self._changed:
            self.state = DoorState.DRAINING

    def check(self) -> None:
        """Refuse where nobody is let in, so that a body need not even be read.

        Raises:
            Unavailable: Starting or draining.
        """
        if not self.is_open:
            self._metrics.rejected.labels(self.state.value).inc()
            raise unavailable(self.state)

    def enter(self) -> "Door":
        """Be inside until `leave`, or while a `with` block runs.

        Raises:
            Unavailable: Starting or draining.
        """
        with self._changed:
            self.check()
            self._num_inside += 1
        return self

    def leave(self) -> None:
        """Be inside no more."""
        with self._changed:
            self._num_inside -= 1
            if not self._num_inside:
                self._changed.notify_all()

    def __enter__(self) -> None:
        """What `enter` returned: inside already."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.leave()

    def wait_idle(self, timeout_s: float) -> bool:
        """Block until nobody is inside; False where the time-out came first."""
        with self._changed:
            return self._changed.wait_for(lambda: self._num_inside == 0, timeout_s)


def unavailable(state: DoorState) -> Unavailable:
    """The one wording of a door that is not open."""
    return Unavailable(
        f"The server is {state.value}; try again.", retry_after_s=UNAVAILABLE_RETRY_S
    )
