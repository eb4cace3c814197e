"""Export of spans by OpenTelemetry's SDK over OTLP; the extra `otel` installs what it needs.

Imported only when `otlp_endpoint` is set.
"""

import threading
from collections.abc import Sequence

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from service.monitoring.metrics import Metrics, release


class OtlpExporter(OTLPSpanExporter):
    """Sends spans to a collector and counts the sent and the lost ones.

    The base class reads headers, certificates, time-out and compression from its own variables,
    such as OTEL_EXPORTER_OTLP_HEADERS, which may hold a secret.
    """

    def __init__(self, endpoint: str, metrics: Metrics) -> None:
        super().__init__(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
        self._sent, self._lost = map(metrics.spans.labels, ("sent", "lost"))

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send spans."""
        result = super().export(spans)
        (self._sent if result is SpanExportResult.SUCCESS else self._lost).inc(len(spans))
        return result


def tracer_provider(exporter: SpanExporter) -> TracerProvider:
    """A provider that sends spans in a thread of the SDK.

    A caller's decision is kept; OTEL_TRACES_SAMPLER and its argument decide for other requests.
    """
    # OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME override these.
    ours = Resource({"service.name": "tipserve", "service.version": release()})
    resource = Resource.create({**ours.merge(OTELResourceDetector().detect()).attributes})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


def shut_down(provider: TracerProvider, timeout_s: float) -> None:
    """Send the remaining spans; those that a dead collector does not take in time are lost."""
    # `shutdown` has no time limit of its own.
    closing = threading.Thread(target=provider.shutdown, name="spans", daemon=True)
    closing.start()
    closing.join(timeout_s)
