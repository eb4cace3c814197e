"""Traces of requests, through OpenTelemetry's API.

The API does nothing until it is given a tracer of the SDK, which `service.monitoring.span_export`
makes. A request is one server span with a child span for each stage; a batch that failed has no
`run`.

A span never holds an image's name, a text, a query or an exception's message.
"""

import time
from collections.abc import Mapping
from typing import Final, Literal

from opentelemetry.context import Context
from opentelemetry.trace import (
    INVALID_SPAN,
    NoOpTracer,
    Span,
    SpanKind,
    Status,
    StatusCode,
    Tracer,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

Transport = Literal["http", "https", "grpc"]

NO_TRACER: Final = NoOpTracer()
PROPAGATOR: Final = TraceContextTextMapPropagator()
# Without a parent here the API would look for one in the context variables of this thread.
NO_PARENT: Final = Context()
# Added to monotonic time. Read once, so that no child starts before its parent.
OFFSET_NS: Final = time.time_ns() - time.monotonic_ns()


class RequestTrace:
    """Trace of one request.

    Stages may be added by any thread; `end` belongs to the request's loop. Spans are made at the
    end: a stage that runs once per image becomes one span, and a request that is not sampled costs
    one comparison per stage.
    """

    def __init__(self, span: Span, tracer: Tracer = NO_TRACER, started: float = 0.0) -> None:
        context = span.get_span_context()
        # 32 hexadecimal digits; empty if neither the caller nor this server has a trace.
        self.trace_id = f"{context.trace_id:032x}" if context.is_valid else ""
        self.is_sampled = context.trace_flags.sampled
        self.is_recording = span.is_recording()
        self._span, self._tracer, self._started = span, tracer, started
        self._stages: dict[str, tuple[float, float]] = {}

    def stage(self, name: str, started: float, ended: float) -> None:
        """Add one run of a stage; the stage's span covers its first start to its last end."""
        if self.is_recording:
            first, last = self._stages.get(name, (started, ended))
            self._stages[name] = min(first, started), max(last, ended)

    def end(
        self, name: str, attributes: Mapping[str, str | int], *, seconds: float, is_fault: bool
    ) -> None:
        """Make the spans of the stages and end the request's own, once."""
        if not self.is_recording:
            return
        parent = set_span_in_context(self._span, NO_PARENT)
        for stage, (first, last) in sorted(self._stages.items(), key=lambda one: one[1]):
            child = self._tracer.start_span(stage, parent, start_time=_epoch_ns(first))
            child.end(_epoch_ns(last))
        self._span.update_name(name)
        self._span.set_attributes(attributes)
        if is_fault:
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end(_epoch_ns(self._started + seconds))


NO_TRACE: Final = RequestTrace(INVALID_SPAN)


def begin_request(
    tracer: Tracer,
    transport: Transport,
    method: str,
    carrier: Mapping[str, str],
    *,
    started: float,
) -> RequestTrace:
    """Start the trace of a request. Any thread.

    Args:
        tracer: `NO_TRACER` keeps only the trace id of the caller, for the log.
        transport: The protocol that the request uses.
        method: HTTP's verb, or the RPC as `package.Service/Method`.
        carrier: The request's `traceparent` and `tracestate`, if it has them.
        started: Monotonic seconds.
    """
    if tracer is NO_TRACER and "traceparent" not in carrier:
        return NO_TRACE
    parent = PROPAGATOR.extract(carrier, NO_PARENT)
    start, kind = _epoch_ns(started), SpanKind.SERVER
    is_rpc = transport == "grpc"
    attributes = {"rpc.system.name": "grpc"} if is_rpc else {"url.scheme": transport}
    span = tracer.start_span(method, parent, kind, attributes=attributes, start_time=start)
    return RequestTrace(span, tracer, started)


def _epoch_ns(monotonic_s: float) -> int:
    return int(monotonic_s * 1_000_000_000) + OFFSET_NS
