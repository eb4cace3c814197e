"""Traces as the core sees them: a request and its stages, a batch and whose items are in it.

Knows no tracing library: without one every trace is `NO_TRACE`, which does nothing.
`service.monitoring.otel_tracing` is the one that exports. A trace never holds an image's name, a
text or an exception's message.
"""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, Protocol

Transport = Literal["http", "https", "grpc"]

# W3C Trace Context: version, trace id, parent id, flags; later versions may add to it.
TRACEPARENT: Final = re.compile(
    r"(?:00(?=.{53}$)|(?!00|ff)[0-9a-f]{2})"
    r"-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]([0-9a-f])(?:-.*)?$"
)


logger = logging.getLogger(__name__)


class Parent(NamedTuple):
    """What a caller says of its own trace."""

    trace_id: str
    is_sampled: bool


class Ending(NamedTuple):
    """How a request ended.

    Attributes:
        method: The bounded name that metrics use too: a verb and a route, an RPC, or `other`.
        code: HTTP status as a number, or the name of a gRPC code.
        error: Stable short name of what went wrong, never its message.
        is_fault: Whether the fault is the server's, as the protocol's conventions have it.
        seconds: From the request to its answer.
    """

    method: str
    code: int | str
    error: str | None
    is_fault: bool
    seconds: float


class BatchTrace(Protocol):
    """One batch on a lane."""

    def end(self, ended: float, error: str | None = None) -> None:
        """The batch ended at this monotonic time; `error` is the name of an exception's class."""


class RequestTrace(Protocol):
    """One request. Any thread may tell; `end` belongs to its own event loop."""

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits, or nothing."""

    @property
    def is_recording(self) -> bool:
        """Whether anything that is told here is kept."""

    def stage(self, name: str, started: float, ended: float) -> None:
        """A stage ran between these monotonic times; of several runs first start and last end."""

    def enter_queue(self, now: float) -> None:
        """Items of the request wait from this monotonic time on."""

    def begin_batch(
        self, traces: Sequence["RequestTrace"], attributes: Mapping[str, int | str], now: float
    ) -> BatchTrace:
        """A lane begins a batch with items of these requests. Any thread."""

    def ran_in(self, batch: BatchTrace) -> None:
        """An item of the request was computed by this batch, whoever had asked for it first."""

    def end(self, ending: Ending) -> None:
        """The request is over; what is told afterwards is not kept."""


class Tracer(Protocol):
    """Makes the traces of requests. Any thread."""

    def begin(
        self, transport: Transport, method: str, carrier: Mapping[str, str], started: float
    ) -> RequestTrace:
        """A request arrived.

        Args:
            transport: What it came over.
            method: HTTP's verb, or the RPC as `package.Service/Method`.
            carrier: Its `traceparent` and `tracestate`, where it has them.
            started: Monotonic seconds.
        """

    def close(self, timeout_s: float) -> None:
        """Send what is left, for at most so long."""


class NoBatchTrace:
    """Keeps nothing."""

    def end(self, ended: float, error: str | None = None) -> None:
        """Nothing to end."""


@dataclass(frozen=True, slots=True)
class NoTrace:
    """Keeps nothing but the id that the caller's own trace has, for the log."""

    trace_id: str = ""
    is_recording: bool = False

    def stage(self, name: str, started: float, ended: float) -> None:
        """Nothing to keep."""

    def enter_queue(self, now: float) -> None:
        """Nothing to keep."""

    def begin_batch(
        self, traces: Sequence[RequestTrace], attributes: Mapping[str, int | str], now: float
    ) -> BatchTrace:
        """Nothing to begin."""
        return NO_BATCH

    def ran_in(self, batch: BatchTrace) -> None:
        """Nothing to keep."""

    def end(self, ending: Ending) -> None:
        """Nothing to end."""


NO_TRACE: Final = NoTrace()
NO_BATCH: Final = NoBatchTrace()


class NoTracer:
    """Traces nothing."""

    def begin(
        self, transport: Transport, method: str, carrier: Mapping[str, str], started: float
    ) -> RequestTrace:
        """Remembers the caller's trace id only, so that log lines can be found by it."""
        parent = parse_traceparent(carrier.get("traceparent"))
        return NO_TRACE if parent is None else NoTrace(parent.trace_id)

    def close(self, timeout_s: float) -> None:
        """Nothing to send."""


def parse_traceparent(value: str | None) -> Parent | None:
    """W3C's `traceparent`; None where there is none or it cannot be."""
    known = TRACEPARENT.match(value) if value else None
    return Parent(known[1], is_sampled=int(known[2], 16) % 2 == 1) if known else None


def begin_batch(
    traces: Iterable[RequestTrace], attributes: Mapping[str, int | str], now: float
) -> BatchTrace:
    """Begin the trace of a batch, linked to each request that is traced; else it costs nothing."""
    recording = [trace for trace in traces if trace.is_recording]
    if not recording:
        return NO_BATCH
    try:
        return recording[0].begin_batch(list(dict.fromkeys(recording)), attributes, now)
    except Exception:
        logger.exception("a batch's trace was lost")  # and never the batch
        return NO_BATCH
