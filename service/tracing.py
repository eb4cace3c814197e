"""Traces of requests, through OpenTelemetry's API.

The API does nothing until it is given a tracer of the SDK, which `service.monitoring.span_export`
makes. A request is one server span with a child span for each stage; there is one `run` for each
batch that computed items of the request and did not fail.

A span never holds an image's name, a text, a query or an exception's message.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from opentelemetry.context import Context
from opentelemetry.trace import (
    INVALID_SPAN,
    NoOpTracer,
    Span,
    SpanKind,
    Status,
    StatusCode,
    Tracer,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

Transport = Literal["http", "https", "grpc"]

NO_TRACER: Final = NoOpTracer()
# Facts of a call that OpenTelemetry has a name for.
CONVENTIONS: Final = {"address": "client.address"}
PROPAGATOR: Final = TraceContextTextMapPropagator()
# Without a parent here the API would look for one in the context variables of this thread.
NO_PARENT: Final = Context()
# Added to monotonic time. Read once, so that no child starts before its parent.
OFFSET_NS: Final = time.time_ns() - time.monotonic_ns()


class Outcome(NamedTuple):
    """How a request ended.

    Attributes:
        method: Bounded name that metrics use too: a verb and a route, an RPC, or `other`.
        code: HTTP status as a number, or the name of a gRPC code.
        error: Stable short name of the error, never its message.
        is_fault: Whether the server is at fault, by OpenTelemetry's conventions for the protocol.
        seconds: From the request to its answer.
    """

    method: str
    code: int | str
    error: str | None
    is_fault: bool
    seconds: float


@dataclass(slots=True, eq=False, kw_only=True)
class BatchRun:
    """One batch that a lane has computed, as the traces of its requests show it.

    Attributes:
        bucket: Shape of its items.
        num_items: Images or texts.
        cost: In patches or tokens.
        ended: Monotonic seconds.
    """

    bucket: str
    num_items: int
    cost: int
    ended: float


class RequestTrace:
    """Trace of one request.

    Stages may be added by any thread; batches and `end` belong to the request's loop. Their spans
    are made at the end: a stage that runs once per image becomes one span, and a
    request that is not sampled costs one comparison per stage.
    """

    def __init__(
        self,
        span: Span,
        *,
        tracer: Tracer = NO_TRACER,
        transport: Transport,
        started: float,
    ) -> None:
        context = span.get_span_context()
        # 32 hexadecimal digits; empty if neither the caller nor this server has a trace.
        self.trace_id = f"{context.trace_id:032x}" if context.is_valid else ""
        self.is_sampled = context.trace_flags.sampled
        self.is_recording = span.is_recording()
        self._span = span
        self._tracer = tracer
        self._transport = transport
        self._started = started
        self._stages: dict[str, tuple[float, float]] = {}
        self._runs: dict[BatchRun, float] = {}  # with their starts

    def stage(self, name: str, started: float, ended: float) -> None:
        """Add one run of a stage; the stage's span covers its first start to its last end."""
        if self.is_recording:
            first, last = self._stages.get(name, (started, ended))
            self._stages[name] = min(first, started), max(last, ended)

    def ran_in(self, batch: BatchRun | None, *, queue_s: float, run_s: float) -> None:
        """Record that a batch computed an item, which waited and then ran for so long.

        Another request may have started the item: equal prompts are computed once.
        """
        if self.is_recording and batch is not None and batch not in self._runs:
            started = self._runs[batch] = batch.ended - run_s
            self.stage("queue", started - queue_s, started)

    def end(self, outcome: Outcome, facts: Mapping[str, str | int]) -> None:
        """Make the spans of the stages and end the request's own, with `Call.facts`, once."""
        if not self.is_recording:
            return
        ended = self._started + outcome.seconds
        for batch, started in self._runs.items():
            self._add("run", started, batch.ended, batch)
        for name, (first, last) in sorted(self._stages.items(), key=lambda stage: stage[1]):
            self._add(name, first, last)
        name, attributes = _name_and_attributes(self._transport, outcome)
        self._span.update_name(name)
        self._span.set_attributes(attributes)
        for name, fact in facts.items():
            self._span.set_attribute(CONVENTIONS.get(name) or f"tipserve.{name}", fact)
        if outcome.is_fault:
            self._span.set_status(Status(StatusCode.ERROR))
            self._span.set_attribute("error.type", outcome.error or str(outcome.code))
        self._span.end(_epoch_ns(ended))

    def _add(self, name: str, first: float, last: float, batch: BatchRun | None = None) -> None:
        parent = set_span_in_context(self._span, NO_PARENT)
        child = self._tracer.start_span(name, parent, start_time=_epoch_ns(first))
        if batch is not None:
            child.set_attribute("tipserve.batch.bucket", batch.bucket)
            child.set_attribute("tipserve.batch.items", batch.num_items)
            child.set_attribute("tipserve.batch.cost", batch.cost)
        child.end(_epoch_ns(last))


NO_TRACE: Final = RequestTrace(INVALID_SPAN, transport="http", started=0.0)


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
    has_parent = "traceparent" in carrier
    if tracer is NO_TRACER and not has_parent:
        return NO_TRACE
    parent = PROPAGATOR.extract(carrier, NO_PARENT) if has_parent else NO_PARENT
    caller = get_current_span(parent)
    context = caller.get_span_context()
    if tracer is NO_TRACER or (context.is_valid and not context.trace_flags.sampled):
        # The sampler keeps the caller's decision. A span of the SDK took some 45 us more.
        return RequestTrace(caller, transport=transport, started=started)
    span = tracer.start_span(method, parent, SpanKind.SERVER, start_time=_epoch_ns(started))
    return RequestTrace(span, tracer=tracer, transport=transport, started=started)


def _name_and_attributes(
    transport: Transport, outcome: Outcome
) -> tuple[str, dict[str, str | int]]:
    """Name and attributes of a span, by OpenTelemetry's conventions for HTTP and RPC servers.

    Neither the query nor a path without a route is written: both may hold texts.
    """
    attributes: dict[str, str | int] = {}
    if outcome.error:
        attributes["tipserve.error.code"] = outcome.error
    if transport == "grpc":
        attributes["rpc.system.name"] = "grpc"
        attributes["rpc.method"] = "_OTHER" if outcome.method == "other" else outcome.method
        attributes["rpc.response.status_code"] = str(outcome.code)
        return outcome.method, attributes
    verb, _, route = outcome.method.partition(" ")
    attributes["http.request.method"] = verb if route else "_OTHER"
    attributes["http.response.status_code"] = outcome.code
    attributes["url.scheme"] = transport
    if route:
        attributes["http.route"] = route
        if "{" not in route:
            attributes["url.path"] = route
    return (outcome.method if route else "HTTP"), attributes


def _epoch_ns(monotonic_s: float) -> int:
    return int(monotonic_s * 1_000_000_000) + OFFSET_NS
