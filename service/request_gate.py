"""The server-wide request gate: whether requests are accepted, and how many are in flight."""

import threading
from enum import Enum
from typing import Final

from service.errors import Unavailable
from service.monitoring.metrics import Metrics

UNAVAILABLE_RETRY_S: Final = 2.0


class GateState(Enum):
    """The life of a server, in order."""

    STARTING = "starting"
    OPEN = "open"
    # Readiness fails, but requests are still accepted until load balancers have noticed.
    STOPPING = "stopping"
    DRAINING = "draining"


class RequestGate:
    """Accepts requests between the start and the drain, and counts those in flight. Thread-safe."""

    def __init__(self, metrics: Metrics) -> None:
        self.state = GateState.STARTING
        self._num_in_flight = 0
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._metrics = metrics
        metrics.watch_inflight(lambda: self._num_in_flight)

    @property
    def is_open(self) -> bool:
        """Whether requests are accepted."""
        return self.state is GateState.OPEN or self.state is GateState.STOPPING

    @property
    def is_ready(self) -> bool:
        """Whether load balancers should send requests."""
        return self.state is GateState.OPEN

    @property
    def num_in_flight(self) -> int:
        """Requests between `enter` and `leave`."""
        return self._num_in_flight

    def open(self) -> None:
        """Accept requests, unless the server is stopping already."""
        with self._changed:
            if self.state is GateState.STARTING:
                self.state = GateState.OPEN

    def announce_drain(self) -> None:
        """Fail readiness and keep accepting requests; a server that never opened drains at once."""
        with self._changed:
            is_open = self.state is GateState.OPEN
            self.state = GateState.STOPPING if is_open else GateState.DRAINING

    def drain(self) -> None:
        """Reject new requests; requests in flight may finish."""
        with self._changed:
            self.state = GateState.DRAINING

    def check(self) -> None:
        """Reject a request before its body is read.

        Raises:
            Unavailable: The server is starting or draining.
        """
        # Every request asks three times: no property.
        if self.state is not GateState.OPEN and self.state is not GateState.STOPPING:
            self._metrics.rejected.labels(self.state.value).inc()
            raise unavailable(self.state)

    def enter(self) -> None:
        """Count a request as in flight, until `leave`.

        Raises:
            Unavailable: The server is starting or draining.
        """
        with self._lock:
            self.check()
            self._num_in_flight += 1

    def leave(self) -> None:
        """Mark the request as finished."""
        with self._lock:
            self._num_in_flight -= 1
            if not self._num_in_flight:
                self._changed.notify_all()

    def wait_idle(self, timeout_s: float) -> bool:
        """Block until no request is in flight; False after the timeout."""
        with self._changed:
            return self._changed.wait_for(lambda: self._num_in_flight == 0, timeout_s)


def unavailable(state: GateState) -> Unavailable:
    """The error for a gate that is not open."""
    return Unavailable(
        f"The server is {state.value}; try again.", retry_after_s=UNAVAILABLE_RETRY_S
    )
