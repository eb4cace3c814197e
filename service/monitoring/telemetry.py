"""What both transports do around every request: start its call; count, trace and log its end."""

import time
from collections.abc import Callable, Mapping
from functools import partial

from opentelemetry.trace import Tracer

from service.call import Call, accept_request_id, caller_of, current_call
from service.monitoring.log import AccessLog, LogQueue
from service.monitoring.metrics import Metrics, find_nvml
from service.settings import Settings
from service.tracing import (
    NO_TRACER,
    Outcome,
    Transport,
    begin_request,
)

# The headers or metadata that `Telemetry.begin` reads, in lower case.
CARRIED = frozenset({"x-request-id", "traceparent", "tracestate"})
DEADLINE_CODES = frozenset({"504", "DEADLINE_EXCEEDED"})


def build_telemetry(settings: Settings, metrics: Metrics, log: LogQueue | None) -> "Telemetry":
    """Telemetry as the settings ask for it; without a log queue no request is logged.

    Raises:
        ImportError: `otlp_endpoint` is set and OpenTelemetry's SDK is not installed.
    """
    metrics.watch_gpus(find_nvml())
    access_log = None
    if log is not None:
        metrics.num_dropped_lines = lambda: log.num_dropped
        # Lines of successful requests have the level INFO.
        is_logged = settings.log_level in ("DEBUG", "INFO")
        access_log = AccessLog(settings.access_log_ratio if is_logged else 0.0)
    if settings.otlp_endpoint is None:
        return Telemetry(metrics, access_log=access_log)
    try:
        from service.monitoring import span_export  # noqa: PLC0415 - needs the extra `otel`
    except ModuleNotFoundError as error:
        raise ImportError(
            "otlp_endpoint needs OpenTelemetry: pip install 'tipserve[otel]', or unset it"
        ) from error
    exporter = span_export.OtlpExporter(settings.otlp_endpoint, metrics)
    provider = span_export.tracer_provider(exporter)
    return Telemetry(
        metrics,
        access_log=access_log,
        tracer=provider.get_tracer("tipserve"),
        close=partial(span_export.shut_down, provider),
    )


class Telemetry:
    """Starts and ends calls. Thread-safe; used by both transports' loops.

    Args:
        metrics: Counts the calls.
        access_log: None logs no request.
        tracer: Starts spans.
        close: Sends the remaining spans, for at most so many seconds.
    """

    def __init__(
        self,
        metrics: Metrics,
        *,
        access_log: AccessLog | None = None,
        tracer: Tracer = NO_TRACER,
        close: Callable[[float], None] = lambda timeout_s: None,
    ) -> None:
        self.metrics = metrics
        self.close = close
        self._access_log = access_log
        self._tracer = tracer

    def begin(
        self,
        transport: Transport,
        method: str,
        carried: Mapping[str, str],
        timeout_s: float,
        *,
        host: str = "",
    ) -> Call:
        """Start the call of a request and make it the current one.

        Args:
            transport: Protocol of the request.
            method: HTTP's verb, or the RPC as `package.Service/Method`.
            carried: Its headers, of which those in `CARRIED` are read.
            timeout_s: Seconds until its deadline.
            host: Address of the caller.
        """
        started = time.monotonic()
        call = Call(
            request_id=accept_request_id(carried.get("x-request-id")),
            started=started,
            deadline=started + timeout_s,
            host=host,
            caller=caller_of(transport, host),
            trace=begin_request(self._tracer, transport, method, carried, started=started),
        )
        current_call.set(call)
        return call

    def end(
        self,
        call: Call,
        method: str,
        code: int | str,
        *,
        is_fault: bool = False,
        is_quiet: bool = False,
    ) -> None:
        """Count, trace and log the end of a call.

        Args:
            call: Its stages and error are recorded.
            method: One of our routes or RPCs, or `other`; never a name that a caller made up.
            code: HTTP status, or the name of a gRPC code.
            is_fault: Whether the server is at fault.
            is_quiet: Whether to count only, as with health checks.
        """
        seconds, label = call.clock() - call.started, str(code)
        if label in DEADLINE_CODES and call.has_short_deadline:
            label, is_fault = f"{label}_CALLER", False
        # Of a trace that is not sampled, nobody has spans to show.
        trace_id = call.trace.trace_id if call.trace.is_sampled else ""
        self.metrics.calls.observe(
            method, label, seconds, call.stages, model=call.model, trace_id=trace_id
        )
        if is_quiet:
            return
        outcome = Outcome(method, code, call.error, is_fault, seconds)
        if call.trace.is_recording:
            call.trace.end(outcome, call.facts())
        if self._access_log is not None:
            self._access_log.write(call, outcome)
