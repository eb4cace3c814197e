"""Around every RPC of ours: its call, its metrics and log line, and the translation of errors."""

import asyncio
import logging
from functools import partial
from typing import Any

import grpc

from service.call import Call, accept_priority, current_request_id
from service.errors import ErrorKind, ServiceError, internal_error
from service.grpc.errors import CODE, Metadata, error_metadata
from service.grpc.gate import Gate
from service.grpc.message import Rpc, read_message
from service.grpc.open_services import with_checked_messages
from service.monitoring.telemetry import CARRIED, Telemetry
from service.safety.protection import Protection

OURS = "/tipserve.v1."
# The codes that OpenTelemetry's conventions call a server's own errors.
FAULTS = {
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DATA_LOSS,
}

logger = logging.getLogger(__name__)


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Unary RPCs of ours become calls; of health and reflection only the messages are checked."""

    def __init__(self, telemetry: Telemetry, protection: Protection, gate: Gate) -> None:
        self._telemetry = telemetry
        self._gate = gate
        self._timeout_s = protection.request_timeout_s
        self._body_memory = protection.body_memory
        self._max_values = protection.max_message_values

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """Wrap the RPC's handler."""
        handler = await continuation(handler_call_details)
        method: str = handler_call_details.method
        if handler is None:
            # grpc answers these itself, and a made-up name must not become a label.
            unknown = grpc.StatusCode.UNIMPLEMENTED.name
            self._telemetry.metrics.calls.observe("other", unknown, None, {})
            return None
        if not method.startswith(OURS):
            return with_checked_messages(handler)
        # With a stream of messages the handler reads: see `read_message`. Answers are bytes.
        rpc = Rpc.of(method, handler, self._max_values)
        return grpc.stream_unary_rpc_method_handler(partial(self._serve, rpc))

    async def _serve(self, rpc: Rpc, messages: Any, context: Any) -> bytes:
        """Let nothing out that the framework would quote to the caller."""
        try:
            return await self._answer(rpc, context)
        except grpc.aio.AbortError:
            raise
        except grpc.aio.InternalError:
            # The core could not send: the RPC has ended meanwhile, and nobody is there to be told.
            raise asyncio.CancelledError from None
        except Exception:
            logger.exception("unexpected error")
        error = internal_error(current_request_id())
        await context.abort(CODE[error.kind], error.message, error_metadata(error))
        raise AssertionError

    async def _answer(self, rpc: Rpc, context: Any) -> bytes:
        call = self._begin(rpc.name, context)
        code = grpc.StatusCode.CANCELLED
        call.error = "client_left"
        try:
            answer, error = await self._ask(rpc, context, call)
            code = CODE[error.kind] if error else grpc.StatusCode.OK
            call.error = error.code if error else None
        finally:
            self._telemetry.end(call, rpc.name, code.name, is_fault=code in FAULTS)
        await self._gate.pass_by()
        metadata = call_metadata(call)
        if error is not None:
            message, trailing = error.message, (*metadata, *error_metadata(error))
            # The context keeps what `abort` raises, and that this frame, which must not keep with
            # it the error and the request in the error's own frames.
            del error
            await context.abort(code, message, trailing_metadata=trailing)
        context.set_trailing_metadata(metadata)
        assert answer is not None
        return answer

    async def _ask(
        self, rpc: Rpc, context: Any, call: Call
    ) -> tuple[bytes | None, ServiceError | None]:
        try:
            given = dict(context.invocation_metadata() or ()).get("x-request-priority")
            call.priority = accept_priority(given, param="x-request-priority")
            with self._body_memory.share() as share:
                request = await read_message(context, rpc, share, call)
                answer = await rpc.behavior(request, context)
                return rpc.write(answer), None
        except ServiceError as error:
            if error.kind is not ErrorKind.INTERNAL:
                return None, error
            logger.exception("internal error")
        except Exception:
            logger.exception("unexpected error")
        return None, internal_error(call.request_id)

    def _begin(self, name: str, context: Any) -> Call:
        remaining_s = context.time_remaining()
        timeout_s = self._timeout_s if remaining_s is None else min(self._timeout_s, remaining_s)
        carried = carried_metadata(context.invocation_metadata())
        return self._telemetry.begin("grpc", name, carried, timeout_s)


def carried_metadata(metadata: Any) -> dict[str, str]:
    """What telemetry reads of an RPC's metadata; none of it is binary."""
    return {name: value for name, value in metadata or () if name in CARRIED}


def call_metadata(call: Call) -> Metadata:
    """What every answer says of its call, errors too."""
    return (("x-request-id", call.request_id), ("server-timing", call.server_timing()))
