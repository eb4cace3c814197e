"""The one interceptor: each RPC's call, key, limits, deadline, ticket and errors.

Health and reflection need no key: Kubernetes' probes cannot send one, and reflection describes only
the contract in `proto/`. Their messages are small, and few are read at once.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any, Final
from urllib.parse import unquote

import grpc
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection

from service.admission import Admission, Ticket
from service.call import Call, accept_priority, deadline_exceeded
from service.errors import (
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    NotSupported,
    Overloaded,
    RequestTooLarge,
    ServiceError,
    Unavailable,
    internal_error,
)
from service.grpc.errors import CODE, Metadata, error_metadata
from service.grpc.limits import RECEIVE_LIMIT_S, MessageReader, Rpc, parse_message
from service.grpc.stream import AnsweredStream, StreamItem
from service.grpc.writing import STREAM_DEPTH, write_message
from service.monitoring.telemetry import Telemetry
from service.safety.protection import Protection
from service.safety.proxies import FORWARDED_FOR

StreamError = Callable[[ServiceError, Any, Call], Message]
# Metadata of an RPC, which is converted anew at each call of grpcio's.
Headers = Mapping[str, str]
OPEN_SERVICES: Final = frozenset({health.SERVICE_NAME, reflection.SERVICE_NAME})
# Those that are the server's fault by OpenTelemetry's conventions.
FAULTS: Final = (DeadlineExceeded, InternalError, NotSupported, Unavailable)
PRIORITY: Final = "x-request-priority"
# Messages of health and reflection hold one name. 64 of 33 MB took 2 GiB.
MAX_OPEN_MESSAGE_BYTES: Final = 4096
NUM_OPEN_MESSAGES: Final = 2
RETRY_S: Final = 1.0
MAX_RPCS: Final = 2048
# Unary messages that are received at once, and open streams: each may take `max_request_bytes`.
# Where only four messages were received at once, a proxy whose streams wait for each other stalled.
NUM_MESSAGES: Final = 16
MAX_STREAMS: Final = 20
logger = logging.getLogger(__name__)


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Makes each of our RPCs a call; every request of a stream is one.

    `stream_errors` converts an error of a stream's request to an answer, by method; the request is
    None if it could not be parsed.
    """

    def __init__(
        self,
        telemetry: Telemetry,
        protection: Protection,
        admission: Admission,
        stream_errors: Mapping[str, StreamError],
    ) -> None:
        self._telemetry = telemetry
        self._protection = protection
        self._admission = admission
        self._stream_errors = stream_errors
        self._reader = MessageReader(NUM_MESSAGES)
        # A stream of reflection that waits for its caller keeps no health check waiting.
        self._open_readers = {name: MessageReader(NUM_OPEN_MESSAGES) for name in OPEN_SERVICES}
        self._num_rpcs = self._num_streams = 0
        self._handlers: dict[str, Any] = {}
        # Set when the server closes: streams read no further request.
        self.closing = asyncio.Event()

    @property
    def is_idle(self) -> bool:
        """Whether no RPC of ours is running."""
        return not self._num_rpcs and not self._num_streams

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """Wrap the handlers of our RPCs; they read their messages themselves, as bytes."""
        method: str = handler_call_details.method
        if method in self._handlers:
            return self._handlers[method]
        handler = await continuation(handler_call_details)
        if handler is None:
            return grpc.stream_stream_rpc_method_handler(self._refuse_unknown)
        if service_of(method) in OPEN_SERVICES:
            return self._open_handler(handler, self._open_readers[service_of(method)])
        request_type = handler.request_deserializer.__self__  # of `Request.FromString`
        behavior = handler.unary_unary or handler.stream_stream
        rpc = Rpc(method.removeprefix("/"), request_type, behavior)
        is_stream = handler.stream_stream is not None

        async def serve(messages: Any, context: Any) -> None:
            if is_stream:
                await self._serve_stream(rpc, context)
            else:
                await self._serve(rpc.name, context, partial(self._answer, rpc, context))

        self._handlers[method] = grpc.stream_stream_rpc_method_handler(serve)
        return self._handlers[method]

    async def _refuse_unknown(self, messages: Any, context: Any) -> None:
        """Refuse an RPC that is not served, under one name: a caller's must not become a label."""

        async def refuse(ticket: Ticket) -> None:
            raise NotSupported("This RPC is not served.", code="unknown_rpc")

        await self._serve("other", context, refuse)

    def _open_handler(self, handler: Any, reader: MessageReader) -> Any:
        """A handler of health or reflection that reads its messages itself, as bytes."""

        async def read_all(context: Any, host: str) -> AsyncGenerator[Any, None]:
            while (raw := await reader.read(context, host)) is not grpc.aio.EOF:
                if len(raw) > MAX_OPEN_MESSAGE_BYTES:
                    raw = b""  # the context keeps the error, and the error this frame
                    raise RequestTooLarge(f"At most {MAX_OPEN_MESSAGE_BYTES} bytes are allowed.")
                try:
                    yield handler.request_deserializer(raw)
                except DecodeError:
                    raise InvalidRequest("The message is malformed.") from None

        async def answer(messages: Any, context: Any) -> None:
            host = self._host_of(context, headers_of(context))
            try:
                async with aclosing(read_all(context, host)) as requests:
                    if handler.stream_stream is not None:
                        async for one in handler.stream_stream(requests, context):
                            await context.write(one)
                        return
                    async for request in requests:
                        if handler.unary_stream is not None:
                            await handler.unary_stream(request, context)  # it writes to the context
                        else:
                            await context.write(await handler.unary_unary(request, context))
                        return  # it was the only one
                    raise InvalidRequest("The RPC has no message.", code="missing_message")
            except ServiceError as error:
                await _abort(context, error, ())
            except NotImplementedError:  # such as Health/List, which newer contracts have
                await context.abort(grpc.StatusCode.UNIMPLEMENTED, "This RPC is not supported.")

        return grpc.stream_stream_rpc_method_handler(
            answer, response_serializer=handler.response_serializer
        )

    async def _answer(self, rpc: Rpc, context: Any, ticket: Ticket) -> None:
        """Read the request of a unary RPC, and send its answer."""
        raw = await self._reader.read(context, ticket.call.host)
        if raw is grpc.aio.EOF:
            raise InvalidRequest("The RPC has no message.", code="missing_message")
        request = parse_message(raw, rpc, ticket)
        del raw
        answer = write_message(await rpc.behavior(request, context))
        del request
        context.set_trailing_metadata(call_metadata(ticket.call))
        await context.write(answer)

    async def _serve(
        self, name: str, context: Any, answer: Callable[[Ticket], Awaitable[None]]
    ) -> None:
        """Answer a unary RPC, or abort it with its error."""
        headers = headers_of(context)
        ticket = self._admission.enter(self._begin(name, context, headers))
        self._num_rpcs += 1

        async def work() -> None:
            self._check_key(headers, ticket)
            ticket.call.priority = accept_priority(headers.get(PRIORITY), param=PRIORITY)
            if self._num_rpcs > MAX_RPCS:
                raise self._too_many("RPCs", code="too_many_rpcs")
            await answer(ticket)

        try:
            error = await self._error_of(name, ticket.call, work())
        finally:
            self._num_rpcs -= 1
            ticket.release()
        if error is not None:
            abort = _abort(context, error, call_metadata(ticket.call))
            # The context keeps the exception of an abort, and with it this frame.
            del ticket, error, work
            await abort

    async def _error_of(
        self, name: str, call: Call, work: Coroutine[Any, Any, None]
    ) -> ServiceError | None:
        """Do the work of a call until its deadline, and record how it ended; returns its error."""
        code, call.error = grpc.StatusCode.CANCELLED, "client_left"
        error: ServiceError | None = None
        try:
            try:
                async with asyncio.timeout(call.deadline - call.clock()) as call.limit:
                    await work
            except TimeoutError:
                error = deadline_exceeded()
            except grpc.aio.InternalError:  # the RPC has ended, so there is no caller to answer
                raise asyncio.CancelledError from None
            except Exception as raised:
                error = _answerable(raised, call)
            code = grpc.StatusCode.OK if error is None else CODE[type(error)]
            call.error = None if error is None else error.code
        finally:
            self._telemetry.end(call, name, code.name, is_fault=isinstance(error, FAULTS))
        return error

    async def _serve_stream(self, rpc: Rpc, context: Any) -> None:
        """Answer the requests of a stream, in their order."""
        self._num_streams += 1
        error: ServiceError | None = None
        headers = headers_of(context)
        stream = self._admission.enter(self._begin(rpc.name, context, headers))
        try:
            self._check_key(headers, stream)
            if self._num_streams > MAX_STREAMS:
                raise self._too_many("streams", code="too_many_streams")
            await AnsweredStream(
                context,
                partial(self._answer_item, rpc, context, headers, stream=stream.call),
                closing=self.closing,
                idle_s=self._protection.settings.request_timeout_s + RECEIVE_LIMIT_S,
            ).run()
        except grpc.aio.InternalError:
            raise asyncio.CancelledError from None
        except Exception as raised:
            error = _answerable(raised, stream.call)
        finally:
            self._num_streams -= 1
            stream.release()
        if error is not None:
            await _abort(context, error, call_metadata(stream.call))

    async def _answer_item(
        self, rpc: Rpc, context: Any, headers: Headers, item: StreamItem, *, stream: Call
    ) -> bytes:
        """Answer one request of a stream; an error is an answer too."""
        call = self._begin(rpc.name, context, headers)
        call.item = item.index
        call.key_name, call.key_digest = stream.key_name, stream.key_digest
        ticket = item.ticket = self._admission.enter(call)
        ticket.on_taken = item.taken.set
        request: Message | None = None
        answer = b""

        async def work() -> None:
            nonlocal request, answer
            call.priority = accept_priority(headers.get(PRIORITY), param=PRIORITY)
            request = parse_message(item.raw, rpc, ticket)
            item.raw = b""
            answer = write_message(await rpc.behavior(request, context), STREAM_DEPTH)

        error = await self._error_of(rpc.name, call, work())
        if error is None:
            return answer
        return write_message(self._stream_errors[rpc.name](error, request, call))

    def _begin(self, name: str, context: Any, headers: Headers) -> Call:
        remaining_s = context.time_remaining()
        longest_s = self._protection.settings.request_timeout_s
        host = self._host_of(context, headers)
        call = self._telemetry.begin("grpc", name, headers, longest_s, host=host)
        call.answer_encoding = "protobuf"
        if remaining_s is not None:
            call.shorten(call.started + remaining_s)
        return call

    def _host_of(self, context: Any, headers: Headers) -> str:
        forwarded = headers.get(FORWARDED_FOR, "")
        return self._protection.proxies.host_of(peer_host(context.peer()), [forwarded])

    def _check_key(self, headers: Headers, ticket: Ticket) -> None:
        keys = self._protection.keys
        shown = headers.get("authorization"), headers.get("x-api-key")
        ticket.leave = keys.enter(*shown, ticket.call)

    def _too_many(self, what: str, *, code: str) -> Overloaded:
        self._protection.metrics.rejected.labels("rpcs").inc()
        return Overloaded(f"Too many {what} are open; try again.", code=code, retry_after_s=RETRY_S)


def _answerable(error: Exception, call: Call) -> ServiceError:
    """The error that a caller is told; others are logged, since they may hold internals."""
    if isinstance(error, ServiceError) and not isinstance(error, InternalError):
        error.__cause__ = error.__context__ = None  # their frames, and its own, hold the request
        return error.with_traceback(None)
    what = "internal error" if isinstance(error, ServiceError) else "unexpected error"
    logger.error(what, exc_info=error)
    return internal_error(call.request_id)


async def _abort(context: Any, error: ServiceError, metadata: Metadata) -> None:
    code, message = CODE[type(error)], error.message
    trailing = (*metadata, *error_metadata(error))
    del error  # see `_serve`
    await context.abort(code, message, trailing_metadata=trailing)


def call_metadata(call: Call) -> Metadata:
    """Trailing metadata of every answer and error."""
    return (("x-request-id", call.request_id), ("server-timing", call.server_timing()))


def service_of(method: str) -> str:
    """`package.Service` of `/package.Service/Method`."""
    return method.lstrip("/").rpartition("/")[0]


def headers_of(context: Any) -> Headers:
    """The metadata of an RPC, without binary values; values of one name are joined by commas."""
    headers: dict[str, str] = {}
    for name, value in context.invocation_metadata() or ():
        if isinstance(value, str):
            headers[name] = f"{headers[name]},{value}" if name in headers else value
    return headers


def peer_host(peer: str) -> str:
    """The host in gRPC's name of a client, such as `ipv6:%5B::1%5D:50000`."""
    return unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]")
