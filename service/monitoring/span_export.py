"""Export of spans by OpenTelemetry's SDK over OTLP; the extra `otel` installs what it needs.

Imported only when `otlp_endpoint` is set.
"""

import threading
from collections.abc import Sequence
from typing import Any, Final

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_ON,
    ParentBased,
    SamplingResult,
    TraceIdRatioBased,
)

from service.monitoring.metrics import Metrics, release
from service.tracing import BATCH_SPAN

# More than the requests of any batch. By default the SDK drops links beyond 128.
MAX_LINKS: Final = 4096


class OtlpExporter(OTLPSpanExporter):
    """Sends spans to a collector and counts the sent and the lost ones.

    The base class reads headers, certificates, time-out and compression from its own variables,
    such as OTEL_EXPORTER_OTLP_HEADERS, which may hold a secret.
    """

    def __init__(self, endpoint: str, metrics: Metrics) -> None:
        super().__init__(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
        self._sent = metrics.spans.labels("sent")
        self._lost = metrics.spans.labels("lost")

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send spans."""
        result = super().export(spans)
        (self._sent if result is SpanExportResult.SUCCESS else self._lost).inc(len(spans))
        return result


class _Sampler(ParentBased):
    """Keeps the caller's decision, samples other requests by ratio, and samples every batch.

    A batch starts a span only if one of its requests is sampled.
    """

    def should_sample(
        self, parent_context: Context | None, trace_id: int, name: str, *args: Any, **named: Any
    ) -> SamplingResult:
        sample = ALWAYS_ON.should_sample if name == BATCH_SPAN else super().should_sample
        return sample(parent_context, trace_id, name, *args, **named)


def tracer_provider(exporter: SpanExporter, sample_ratio: float) -> TracerProvider:
    """A provider that sends spans in a thread of the SDK."""
    # OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME override these.
    ours = Resource({"service.name": "tipserve", "service.version": release()})
    provider = TracerProvider(
        sampler=_Sampler(TraceIdRatioBased(sample_ratio)),
        resource=Resource.create({**ours.merge(OTELResourceDetector().detect()).attributes}),
        span_limits=SpanLimits(max_links=MAX_LINKS),
        shutdown_on_exit=False,
    )
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


def shut_down(provider: TracerProvider, timeout_s: float) -> None:
    """Send the remaining spans; those that a dead collector does not take in time are lost."""
    # `shutdown` has no time limit of its own.
    closing = threading.Thread(target=provider.shutdown, name="spans", daemon=True)
    closing.start()
    closing.join(timeout_s)
