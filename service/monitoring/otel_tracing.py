"""Traces by OpenTelemetry, sent over OTLP; the only file that knows that library.

A request is one server span with a child for each stage; a batch is a trace of its own, linked to
every request in it, and their `run` spans are linked to it. Children are made when the request has
ended, from the times that it told, so that a request that nobody samples costs next to nothing.
"""

import logging
import random
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Final

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    Link,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    set_span_in_context,
)
from opentelemetry.trace import Tracer as SpanMaker
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from service.monitoring.metrics import Metrics, release
from service.tracing import (
    NO_TRACE,
    BatchTrace,
    Ending,
    NoTrace,
    RequestTrace,
    Transport,
    parse_traceparent,
)

# More than the requests of any batch: a link that is missing would be a lie.
MAX_LINKS: Final = 4096
NS: Final = 1_000_000_000

logger = logging.getLogger(__name__)


class OtelTracer:
    """Makes spans and hands them to an exporter, in a thread of the library's own."""

    def __init__(self, exporter: SpanExporter, *, sample_ratio: float = 1.0) -> None:
        self._sample_ratio = sample_ratio
        self._provider = TracerProvider(
            sampler=ALWAYS_ON,  # `begin` has decided, for less than a span that is thrown away
            resource=resource(),
            span_limits=SpanLimits(max_links=MAX_LINKS),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._spans = self._provider.get_tracer("tipserve")
        self._propagator = TraceContextTextMapPropagator()

    def begin(
        self, transport: Transport, method: str, carrier: Mapping[str, str], started: float
    ) -> RequestTrace:
        """As `Tracer.begin`; the caller's own decision to sample is kept."""
        parent = parse_traceparent(carrier.get("traceparent"))
        if parent is not None and not parent.is_sampled:
            return NoTrace(parent.trace_id)
        if parent is None and random.random() >= self._sample_ratio:
            return NO_TRACE
        context = self._propagator.extract(carrier, Context()) if parent else Context()
        times = Times()
        span = self._spans.start_span(
            method, context, SpanKind.SERVER, start_time=times.epoch_ns(started)
        )
        return OtelRequest(self._spans, span, times, transport=transport, started=started)

    def close(self, timeout_s: float) -> None:
        """Send what is left; what a dead collector does not take in time is lost."""
        closing = threading.Thread(target=self._provider.shutdown, name="spans", daemon=True)
        closing.start()
        closing.join(timeout_s)


class OtlpExporter(OTLPSpanExporter):
    """Sends spans to a collector and counts what came of it. A collector that is down costs spans.

    Headers, certificates, time-out and compression are read by the library from its own variables,
    such as OTEL_EXPORTER_OTLP_HEADERS, which may hold a secret.
    """

    def __init__(self, endpoint: str, metrics: Metrics) -> None:
        super().__init__(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
        self._sent = metrics.spans.labels("sent")
        self._lost = metrics.spans.labels("lost")

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """As `SpanExporter.export`."""
        result = super().export(spans)
        (self._sent if result is SpanExportResult.SUCCESS else self._lost).inc(len(spans))
        return result


class OtelBatch:
    """One batch, told by its lane."""

    def __init__(self, span: Span, times: "Times", taken: float) -> None:
        self.context = span.get_span_context()
        self.taken = taken
        self.ended: float | None = None
        self.error: str | None = None
        self._span = span
        self._times = times

    def end(self, ended: float, error: str | None = None) -> None:
        """As `BatchTrace.end`."""
        self.ended, self.error = ended, error
        try:
            set_error(self._span, error)
            self._span.end(self._times.epoch_ns(ended))
        except Exception:
            logger.exception("a batch's trace was lost")  # and never its answers


class OtelRequest:
    """One request that is sampled."""

    is_recording = True

    def __init__(
        self, spans: SpanMaker, span: Span, times: "Times", *, transport: Transport, started: float
    ) -> None:
        self.trace_id = hex_id(span.get_span_context())
        self.context = span.get_span_context()
        self._spans = spans
        self._span = span
        self._times = times
        self._transport = transport
        self._started = started
        self._stages: dict[str, tuple[float, float]] = {}
        self._enqueued: float | None = None
        self._batches: list[OtelBatch] = []

    def stage(self, name: str, started: float, ended: float) -> None:
        """As `RequestTrace.stage`."""
        first, last = self._stages.get(name, (started, ended))
        self._stages[name] = min(first, started), max(last, ended)

    def enter_queue(self, now: float) -> None:
        """As `RequestTrace.enter_queue`."""
        if self._enqueued is None or now < self._enqueued:
            self._enqueued = now

    def begin_batch(
        self, traces: Sequence[RequestTrace], attributes: Mapping[str, int | str], now: float
    ) -> BatchTrace:
        """As `RequestTrace.begin_batch`."""
        requests = [trace for trace in traces if isinstance(trace, OtelRequest)]
        span = self._spans.start_span(
            "batch",
            Context(),
            SpanKind.INTERNAL,
            links=[Link(request.context) for request in requests],
            attributes={f"tipserve.batch.{name}": value for name, value in attributes.items()},
            start_time=self._times.epoch_ns(now),
        )
        batch = OtelBatch(span, self._times, now)
        for request in requests:
            request.ran_in(batch)
        return batch

    def ran_in(self, batch: BatchTrace) -> None:
        """As `RequestTrace.ran_in`."""
        if isinstance(batch, OtelBatch) and batch not in self._batches:
            self._batches.append(batch)

    def end(self, ending: Ending) -> None:
        """As `RequestTrace.end`: makes the spans of the stages and ends the request's own."""
        ended = self._started + ending.seconds
        self._tell_batches(ended)
        parent = set_span_in_context(self._span, Context())
        links = [Link(batch.context) for batch in self._batches]
        error = next((batch.error for batch in self._batches if batch.error), None)
        for name, (first, last) in sorted(self._stages.items(), key=lambda stage: stage[1]):
            child = self._spans.start_span(
                name,
                parent,
                links=links if name == "run" else (),
                start_time=self._times.epoch_ns(first),
            )
            set_error(child, error if name == "run" else None)
            child.end(self._times.epoch_ns(last))
        self._describe(ending)
        self._span.end(self._times.epoch_ns(ended))

    def _tell_batches(self, ended: float) -> None:
        """Queue until the last batch began, run from the first batch to the end of the last."""
        queued = self._enqueued
        if queued is None:
            return
        batches = tuple(self._batches)
        # A batch that another request had begun may be older than this request's wait for it.
        taken = [max(batch.taken, queued) for batch in batches]
        self.stage("queue", queued, max(taken, default=ended))
        for start, batch in zip(taken, batches, strict=True):
            self.stage("run", start, max(start, ended if batch.ended is None else batch.ended))

    def _describe(self, ending: Ending) -> None:
        if self._transport == "grpc":
            name, attributes = ending.method, rpc_attributes(ending)
        else:
            name, attributes = http_attributes(self._transport, ending)
        self._span.update_name(name)
        self._span.set_attributes(attributes)
        set_error(self._span, (ending.error or str(ending.code)) if ending.is_fault else None)


class Times:
    """Monotonic seconds as the nanoseconds since 1970 that spans have."""

    def __init__(self) -> None:
        self._offset_ns = time.time_ns() - time.monotonic_ns()

    def epoch_ns(self, monotonic_s: float) -> int:
        """The same moment."""
        return int(monotonic_s * NS) + self._offset_ns


def http_attributes(scheme: str, ending: Ending) -> tuple[str, dict[str, str | int]]:
    """A span's name and attributes by the conventions for HTTP servers.

    Neither the query nor a path that a caller made up: both may hold texts.
    """
    verb, _, route = ending.method.partition(" ")
    attributes: dict[str, str | int] = {
        "http.request.method": verb if route else "_OTHER",
        "http.response.status_code": ending.code,
        "url.scheme": scheme,
    }
    if route:
        attributes["http.route"] = route
        if "{" not in route:
            attributes["url.path"] = route
    if ending.error:
        attributes["tipserve.error.code"] = ending.error
    return (ending.method if route else "HTTP"), attributes


def rpc_attributes(ending: Ending) -> dict[str, str | int]:
    """A span's attributes by the conventions for RPC servers."""
    attributes = {
        "rpc.system.name": "grpc",
        "rpc.method": "_OTHER" if ending.method == "other" else ending.method,
        "rpc.response.status_code": str(ending.code),
    }
    if ending.error:
        attributes["tipserve.error.code"] = ending.error
    return dict(attributes)


def set_error(span: Span, error: str | None) -> None:
    """Mark a span as failed by the error's short name; never by a message."""
    if error is not None:
        span.set_status(Status(StatusCode.ERROR))
        span.set_attribute("error.type", error)


def hex_id(context: SpanContext) -> str:
    """A trace's id as W3C writes it."""
    return f"{context.trace_id:032x}"


def resource() -> Resource:
    """Who sends the spans; OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME, where set, win."""
    ours = Resource({"service.name": "tipserve", "service.version": release()})
    return Resource.create({**ours.merge(OTELResourceDetector().detect()).attributes})
