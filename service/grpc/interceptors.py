"""Around every RPC of ours: its call, its metrics and log line, and the translation of errors."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from functools import partial
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from service.call import Call, accept_priority, current_request_id
from service.door import DoorState, unavailable
from service.errors import DeadlineExceeded, ErrorKind, ServiceError, internal_error
from service.grpc.errors import CODE, Metadata, error_metadata
from service.grpc.gate import Gate
from service.grpc.message import Rpc, parse_message, read_message
from service.grpc.open_services import with_checked_messages
from service.grpc.stream import AnsweredStream, Item
from service.monitoring.telemetry import CARRIED, Telemetry
from service.safety.body_memory import BodyShare
from service.safety.protection import Protection

T = TypeVar("T")
Read = Callable[[BodyShare], Awaitable[Message]]
Renew = Callable[["asyncio.Task[Any]"], None]
StreamError = Callable[[ServiceError, Any, Call], Message]

INFERENCE_SERVICE = "inference.GRPCInferenceService"
OURS = ("/tipserve.v1.", f"/{INFERENCE_SERVICE}/")
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
    """RPCs of ours become calls; of health and reflection only the messages are checked.

    In a stream every request is a call. `stream_errors` writes, by method, the error of one, from
    the request where it could be read.
    """

    def __init__(
        self,
        telemetry: Telemetry,
        protection: Protection,
        gate: Gate,
        *,
        renew: Renew = lambda task: None,
        stream_errors: Mapping[str, StreamError] | None = None,
    ) -> None:
        self._renew = renew
        self._stream_errors = stream_errors or {}
        self._telemetry = telemetry
        self._gate = gate
        self._timeout_s = protection.request_timeout_s
        # An item has been answered by then, if only by its deadline.
        self._stream_idle_s = protection.request_timeout_s + protection.client_timeout_s
        self._body_memory = protection.body_memory
        self._max_stream_requests = protection.max_stream_requests
        self._max_values = protection.max_message_values

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """Wrap the RPC's handler."""
        handler = await continuation(handler_call_details)
        method: str = handler_call_details.method
        if handler is None:
            if method.startswith(OURS[1]):
                return None  # the guard says what this server has not
            # grpc answers these itself, and a made-up name must not become a label.
            unknown = grpc.StatusCode.UNIMPLEMENTED.name
            self._telemetry.metrics.calls.observe("other", unknown, None, {})
            return None
        if not method.startswith(OURS):
            return with_checked_messages(handler)
        # With a stream of messages the handler reads: see `read_message`. Answers are bytes.
        rpc = Rpc.of(method, handler, self._max_values)
        if handler.stream_stream is not None:
            return grpc.stream_stream_rpc_method_handler(partial(self._serve_stream, rpc))
        return grpc.stream_unary_rpc_method_handler(partial(self._serve, rpc))

    async def _serve(self, rpc: Rpc, messages: Any, context: Any) -> bytes:
        return await self._guarded(self._answer(rpc, context), context)

    async def _serve_stream(self, rpc: Rpc, messages: Any, context: Any) -> None:
        await self._guarded(self._answer_stream(rpc, context), context)

    async def _guarded(self, work: Coroutine[Any, Any, T], context: Any) -> T:
        """Let nothing out that the framework would quote to the caller."""
        try:
            return await work
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
        answer, error = await self._call(
            rpc, context, call, lambda share: read_message(context, rpc, share, call)
        )
        await self._gate.pass_by()
        metadata = call_metadata(call)
        if error is not None:
            code, message = CODE[error.kind], error.message
            trailing = (*metadata, *error_metadata(error))
            # The context keeps what `abort` raises, and that this frame, which must not keep with
            # it the call, nor the error and the request in the error's own frames.
            del call, error
            await context.abort(code, message, trailing_metadata=trailing)
        context.set_trailing_metadata(metadata)
        assert answer is not None
        return answer

    async def _answer_stream(self, rpc: Rpc, context: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        loop = asyncio.get_running_loop()
        error: ServiceError
        try:
            async with asyncio.timeout(self._stream_idle_s) as limit:

                def renew() -> None:
                    self._renew(task)
                    limit.reschedule(loop.time() + self._stream_idle_s)

                stream = AnsweredStream(
                    context,
                    partial(self._answer_one, rpc, context),
                    memory=self._body_memory,
                    max_requests=self._max_stream_requests,
                    renew=renew,
                    leaving=self._gate.leaving,
                )
                if await stream.run():
                    return
            error = unavailable(DoorState.DRAINING)
        except TimeoutError:
            error = DeadlineExceeded(
                f"Nothing was sent or taken on this stream for {self._stream_idle_s:g} s; open a "
                "new one.",
                code="idle_stream",
            )
        await self._gate.pass_by()
        await context.abort(
            CODE[error.kind], error.message, trailing_metadata=error_metadata(error)
        )

    async def _answer_one(self, rpc: Rpc, context: Any, item: Item) -> bytes:
        """One request of a stream: a call of its own, whose error is an answer too."""
        request: Message | None = None

        async def read(share: BodyShare) -> Message:
            nonlocal request
            request = parse_message(item.raw, rpc, item.share)
            return request

        call = self._begin(rpc.name, context)
        call.item = item.index
        answer, error = await self._call(rpc, context, call, read)
        if error is None:
            assert answer is not None
            return answer
        return rpc.write(self._stream_errors[rpc.name](error, request, call))

    async def _call(
        self, rpc: Rpc, context: Any, call: Call, read: Read
    ) -> tuple[bytes | None, ServiceError | None]:
        """The answer or the error, counted, traced and logged."""
        code = grpc.StatusCode.CANCELLED
        call.error = "client_left"
        try:
            answer, error = await self._ask(rpc, context, call, read)
            code = CODE[error.kind] if error else grpc.StatusCode.OK
            call.error = error.code if error else None
        finally:
            self._telemetry.end(call, rpc.name, code.name, is_fault=code in FAULTS)
        return answer, error

    async def _ask(
        self, rpc: Rpc, context: Any, call: Call, read: Read
    ) -> tuple[bytes | None, ServiceError | None]:
        try:
            given = dict(context.invocation_metadata() or ()).get("x-request-priority")
            call.priority = accept_priority(given, param="x-request-priority")
            with self._body_memory.share() as share:
                request = await read(share)
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
