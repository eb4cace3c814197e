"""What both transports do around every call: begin it, then count, trace and log its end."""

import logging
import time
from collections.abc import Mapping

from service.call import Call, accept_request_id, current_call
from service.monitoring.log import AccessLog
from service.monitoring.metrics import Metrics
from service.tracing import NO_TRACE, Ending, NoTracer, RequestTrace, Tracer, Transport

# What a transport passes on of a request's headers or metadata, by these names in lower case.
CARRIED = frozenset({"x-request-id", "traceparent", "tracestate"})
logger = logging.getLogger(__name__)


class Telemetry:
    """Thread-safe; both transports' loops come here."""

    def __init__(
        self, metrics: Metrics, *, tracer: Tracer | None = None, access_log: AccessLog | None = None
    ) -> None:
        self.metrics = metrics
        self.tracer = tracer or NoTracer()
        self._access_log = access_log

    def begin(
        self, transport: Transport, method: str, carried: Mapping[str, str], timeout_s: float
    ) -> Call:
        """The call of a request that has just come; it becomes the current one.

        Args:
            transport: What it came over.
            method: HTTP's verb, or the RPC as `package.Service/Method`.
            carried: Those of its headers that `CARRIED` names.
            timeout_s: Seconds until its deadline.
        """
        started = time.monotonic()
        call = Call(
            request_id=accept_request_id(carried.get("x-request-id")),
            started=started,
            deadline=started + timeout_s,
            flow=transport,
            trace=self._begin_trace(transport, method, carried, started),
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
        """The call is over.

        Args:
            call: Whose stages and error are told.
            method: A route or an RPC of ours, or `other`; never what a caller made up.
            code: HTTP status, or the name of a gRPC code.
            is_fault: Whether the fault is the server's.
            is_quiet: Whether it is too usual to be logged and traced.
        """
        seconds = call.clock() - call.started
        self.metrics.calls.observe(method, str(code), seconds, call.stages, model=call.model)
        if is_quiet:
            return
        ending = Ending(method, code, call.error, is_fault, seconds)
        try:
            call.trace.end(ending)
        except Exception:
            logger.exception("a trace was lost")
        if self._access_log is not None:
            self._access_log.answered(call, ending)

    def _begin_trace(
        self, transport: Transport, method: str, carried: Mapping[str, str], started: float
    ) -> RequestTrace:
        """Whatever goes wrong with a trace costs the trace, and never the request."""
        try:
            return self.tracer.begin(transport, method, carried, started)
        except Exception:
            logger.exception("a trace was lost")
            return NO_TRACE
