"""Telemetry from the settings."""

from service.monitoring.log import AccessLog, LineWriter
from service.monitoring.metrics import Metrics, find_nvml
from service.monitoring.telemetry import Telemetry
from service.settings import Settings
from service.tracing import NoTracer, Tracer


def build_telemetry(
    settings: Settings, metrics: Metrics, log_lines: LineWriter | None
) -> Telemetry:
    """What is told of every call, as it is set; without log lines no request is logged."""
    metrics.watch_gpus(find_nvml())
    access_log = None
    if log_lines is not None:
        metrics.watch_log(lambda: log_lines.num_dropped)
        # Requests that went well are of the level INFO.
        is_logged = settings.log_level in ("DEBUG", "INFO")
        ratio = settings.access_log_ratio if is_logged else 0.0
        access_log = AccessLog(log_lines, settings.log_format, ratio=ratio)
    return Telemetry(metrics, tracer=build_tracer(settings, metrics), access_log=access_log)


def build_tracer(settings: Settings, metrics: Metrics) -> Tracer:
    """Traces to the collector that is set, or none.

    Raises:
        ImportError: OpenTelemetry is not installed.
    """
    if settings.otlp_endpoint is None:
        return NoTracer()
    try:
        from service.monitoring.otel_tracing import OtelTracer, OtlpExporter  # noqa: PLC0415 - only where set
    except ModuleNotFoundError as error:
        raise ImportError(
            "otlp_endpoint needs OpenTelemetry: pip install 'tipserve[otel]', or leave it out"
        ) from error
    exporter = OtlpExporter(settings.otlp_endpoint, metrics)
    return OtelTracer(exporter, sample_ratio=settings.trace_sample_ratio)
