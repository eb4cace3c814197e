"""Around every RPC of ours: its call, its metrics and log line, and the translation of errors."""

import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import grpc
from google.protobuf.message import Message

from service.call import Call, accept_priority, accept_request_id, current_call
from service.errors import ErrorKind, ServiceError, internal_error
from service.grpc.errors import CODE, Metadata, error_metadata
from service.observability import Metrics

Behavior = Callable[[Message, Any], Awaitable[Message]]
OURS = "/tipserve.v1."

logger = logging.getLogger(__name__)


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Health and reflection pass through; unary RPCs of ours are wrapped."""

    def __init__(self, metrics: Metrics, *, timeout_s: float) -> None:
        self._metrics = metrics
        self._timeout_s = timeout_s

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """Wrap the RPC's handler."""
        handler = await continuation(handler_call_details)
        method: str = handler_call_details.method
        if handler is None or not method.startswith(OURS):
            return handler
        return grpc.unary_unary_rpc_method_handler(
            partial(self._serve, method, handler.unary_unary),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    async def _serve(
        self, method: str, behavior: Behavior, request: Message, context: Any
    ) -> Message:
        started = time.monotonic()
        call = self._begin(context, started)
        code = grpc.StatusCode.CANCELLED
        try:
            answer, error = await self._ask(behavior, request, context)
            code = CODE[error.kind] if error else grpc.StatusCode.OK
        finally:
            self._record(method, code, call, time.monotonic() - started)
        metadata = _call_metadata(call)
        if error is not None:
            trailing = (*metadata, *error_metadata(error))
            await context.abort(code, error.message, trailing_metadata=trailing)
        context.set_trailing_metadata(metadata)
        assert answer is not None
        return answer

    async def _ask(
        self, behavior: Behavior, request: Message, context: Any
    ) -> tuple[Message | None, ServiceError | None]:
        try:
            given = _metadata(context).get("x-request-priority")
            current_call.get().priority = accept_priority(given, param="x-request-priority")
            return await behavior(request, context), None
        except ServiceError as error:
            if error.kind is not ErrorKind.INTERNAL:
                return None, error
            logger.exception("internal error")
        except Exception:
            logger.exception("unexpected error")
        return None, internal_error(current_call.get().request_id)

    def _begin(self, context: Any, started: float) -> Call:
        given = _metadata(context).get("x-request-id")
        remaining_s = context.time_remaining()
        timeout_s = self._timeout_s if remaining_s is None else min(self._timeout_s, remaining_s)
        request_id = accept_request_id(given)
        call = Call(request_id=request_id, deadline=started + timeout_s)
        current_call.set(call)
        return call

    def _record(self, method: str, code: grpc.StatusCode, call: Call, seconds: float) -> None:
        name = method.removeprefix("/")
        self._metrics.requests.labels(name, code.name).inc()
        self._metrics.duration.labels(name).observe(seconds)
        self._metrics.observe_stages(call.stages)
        fields: dict[str, Any] = {"method": name, "code": code.name, "seconds": round(seconds, 6)}
        fields |= {f"{stage}_s": round(value, 6) for stage, value in call.stages.items()}
        logger.info("answered", extra={"fields": fields})


def _metadata(context: Any) -> dict[str, str]:
    given = dict(context.invocation_metadata() or ())
    return {name: value for name, value in given.items() if isinstance(value, str)}


def _call_metadata(call: Call) -> Metadata:
    timing = (("server-timing", call.server_timing()),) if call.stages else ()
    return (("x-request-id", call.request_id), *timing)
