"""Whether the server takes requests, and how many are in flight."""

import threading
from enum import Enum
from types import TracebackType
from typing import Final

from service.errors import Unavailable
from service.monitoring.metrics import Metrics

UNAVAILABLE_RETRY_S: Final = 2.0


class GateState(Enum):
    """Whether requests are let in."""

    STARTING = "starting"
    OPEN = "open"
    STOPPING = "stopping"
    DRAINING = "draining"


class RequestGate:
    """One for the whole server: starting, open, leaving (soon to drain), draining."""

    def __init__(self, metrics: Metrics) -> None:
        self.state = GateState.STARTING
        self._num_inside = 0
        self._changed = threading.Condition()
        self._metrics = metrics
        metrics.watch_inflight(lambda: self._num_inside)

    @property
    def is_open(self) -> bool:
        """Whether requests are let in."""
        return self.state in {GateState.OPEN, GateState.STOPPING}

    @property
    def is_ready(self) -> bool:
        """Whether balancers should send requests here."""
        return self.state is GateState.OPEN

    def open(self) -> None:
        """Let requests in, unless draining has begun."""
        with self._changed:
            if self.state is GateState.STARTING:
                self.state = GateState.OPEN

    def announce_drain(self) -> None:
        """Let requests in but invite none; what is not open yet drains at once."""
        with self._changed:
            is_open = self.state is GateState.OPEN
            self.state = GateState.STOPPING if is_open else GateState.DRAINING

    def drain(self) -> None:
        """Let nobody in any more; who is inside may finish."""
        with self._changed:
            self.state = GateState.DRAINING

    def check(self) -> None:
        """Refuse where nobody is let in, so that a body need not even be read.

        Raises:
            Unavailable: Starting or draining.
        """
        if not self.is_open:
            self._metrics.rejected.labels(self.state.value).inc()
            raise unavailable(self.state)

    def enter(self) -> "RequestGate":
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


def unavailable(state: GateState) -> Unavailable:
    """The one wording of a gate that is not open."""
    return Unavailable(
        f"The server is {state.value}; try again.", retry_after_s=UNAVAILABLE_RETRY_S
    )
