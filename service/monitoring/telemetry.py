"""What both transports do around every request: start its call; count, trace and log its end."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from opentelemetry.trace import Tracer

from model.installation import install
from service.call import Call, accept_request_id, caller_of, current_call
from service.monitoring.log import LogQueue, call_ids
from service.monitoring.metrics import Metrics
from service.settings import Settings
from service.tracing import NO_TRACER, Transport, begin_request

# The headers or metadata that `Telemetry.begin` reads, in lower case.
CARRIED = frozenset({"x-request-id", "traceparent", "tracestate"})
DEADLINE_CODES = frozenset({"504", "DEADLINE_EXCEEDED"})
# Facts of a call that OpenTelemetry has a name for.
CONVENTIONS: Final = {"address": "client.address"}


def build_telemetry(settings: Settings, metrics: Metrics, log: LogQueue | None) -> "Telemetry":
    """Telemetry as the settings ask for it; without a log queue no request is logged.

    Raises:
        ImportError: `otlp_endpoint` is set and OpenTelemetry's SDK is not installed.
    """
    metrics.watch_gpus()
    if log is not None:
        metrics.num_dropped_lines = lambda: log.num_dropped
    # Lines of successful requests have the level INFO.
    is_logged = settings.log_level in {"DEBUG", "INFO"}
    log_ratio = settings.access_log_ratio if is_logged else 0.0
    if settings.otlp_endpoint is None:
        return Telemetry(metrics, log=log, log_ratio=log_ratio)
    try:
        from service.monitoring import span_export  # noqa: PLC0415 - needs the extra `otel`
    except ModuleNotFoundError as error:
        raise ImportError(
            f"otlp_endpoint needs OpenTelemetry: {install('otel')}, or unset it"
        ) from error
    exporter = span_export.OtlpExporter(settings.otlp_endpoint, metrics)
    provider = span_export.tracer_provider(exporter)
    return Telemetry(
        metrics,
        log=log,
        log_ratio=log_ratio,
        tracer=provider.get_tracer("tipserve"),
        close=partial(span_export.shut_down, provider),
    )


class Telemetry:
    """Starts and ends calls. Thread-safe; used by both transports' loops.

    Args:
        metrics: Counts the calls.
        log: Gets a line for each answer; None logs no request.
        log_ratio: Evenly spread share of answers that get a line; faults of the server always get
            one.
        tracer: Starts spans.
        close: Sends the remaining spans, for at most so many seconds.
    """

    def __init__(
        self,
        metrics: Metrics,
        *,
        log: LogQueue | None = None,
        log_ratio: float = 1.0,
        tracer: Tracer = NO_TRACER,
        close: Callable[[float], None] = lambda timeout_s: None,
    ) -> None:
        self.metrics = metrics
        self.close = close
        self._log, self._log_ratio = log, log_ratio
        self._owed_lines = 0.0
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
        if call.trace.is_recording:
            name, attributes = _name_and_attributes(method, code)
            for fact, value in call.facts().items():
                attributes[CONVENTIONS.get(fact) or f"tipserve.{fact}"] = value
            if call.error:
                attributes["tipserve.error.code"] = call.error
            if is_fault:
                attributes["error.type"] = call.error or str(code)
            call.trace.end(name, attributes, seconds=seconds, is_fault=is_fault)
        if self._log is not None:
            # Two event loops may add at once and lose one addition; the share allows for that.
            self._owed_lines += self._log_ratio
            if is_fault or self._owed_lines >= 1.0:
                self._owed_lines = max(0.0, self._owed_lines - 1.0)
                self._log.put_answer(_answer_fields(call, method, code, seconds))


def _answer_fields(call: Call, method: str, code: int | str, seconds: float) -> dict[str, Any]:
    fields = call_ids(call) | {"method": method, "code": code}
    if call.error:
        fields["error"] = call.error
    fields |= call.facts()
    fields["seconds"] = round(seconds, 6)
    # A copy: a request that was abandoned may still get a stage.
    for name, stage_s in call.stages.copy().items():
        fields[f"{name}_s"] = round(stage_s, 6)
    return fields


def _name_and_attributes(method: str, code: int | str) -> tuple[str, dict[str, str | int]]:
    """Name and attributes of a span, by OpenTelemetry's conventions for HTTP and RPC servers.

    Neither the query nor a path without a route is written: both may hold texts.
    """
    if isinstance(code, str):
        name = "_OTHER" if method == "other" else method
        return method, {"rpc.method": name, "rpc.response.status_code": code}
    verb, _, route = method.partition(" ")
    if not route:
        return "HTTP", {"http.request.method": "_OTHER", "http.response.status_code": code}
    attributes: dict[str, str | int] = {
        "http.request.method": verb,
        "http.response.status_code": code,
        "http.route": route,
    }
    if "{" not in route:
        attributes["url.path"] = route
    return method, attributes
