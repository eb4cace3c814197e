"""Interceptors of every RPC: keys and limits first, then its call and its errors."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from enum import Enum
from functools import partial
from typing import Any, Final, Self

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection

from service.call import Call, Clock, accept_priority, current_request_id
from service.errors import (
    DeadlineExceeded,
    ErrorKind,
    NotSupported,
    Overloaded,
    ServiceError,
    internal_error,
)
from service.grpc.callers import caller_of, peer_host
from service.grpc.connections import OpenRpcs
from service.grpc.errors import CODE, Metadata, error_metadata
from service.grpc.limits import Rpc, open_rpc, parse_message, read_message, serving_small_messages
from service.grpc.receiving import (
    MAX_OPEN_STREAMS,
    MAX_OPEN_UNARY,
    NUM_OPEN_PLACES,
    OPEN_STALL_S,
    OPEN_WAIT_S,
    STREAM_PLACES,
    ReceivePlaces,
)
from service.grpc.stream import UNREAD, AnsweredStream, StreamItem, StreamLimits, write_answer
from service.grpc.writing import write_message
from service.monitoring.telemetry import CARRIED, Telemetry
from service.request_gate import GateState, unavailable
from service.safety.protection import BodyShare, Protection
from service.safety.refusals import PACED_KINDS, RefusalPace

Read = Callable[[BodyShare], Awaitable[Message]]
AnswerRpc = Callable[[Rpc, Any], Coroutine[Any, Any, bytes | None]]
Renew = Callable[["asyncio.Task[Any]"], None]
StreamError = Callable[[ServiceError, Any, Call], Message]
INFERENCE_SERVICE = "inference.GRPCInferenceService"
OURS = ("/tipserve.v1.", f"/{INFERENCE_SERVICE}/")
# Codes that are the server's fault by OpenTelemetry's conventions.
FAULTS = {
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DATA_LOSS,
}
RETRY_S: Final = 1.0
# RPCs that return their answers. Others write them, which takes 0.2 ms more: an answer that is
# returned stays in the core until the caller reads it, also after its task is cancelled.
SMALL_ANSWERS: Final = frozenset({"EmbedTexts", "ClassifyImages", "GetModel", "ListModels"})
OPEN_STREAMS: Final = frozenset({"Watch", "ServerReflectionInfo"})
# Kubernetes' probes cannot send a key, and reflection describes only the contract in `proto/`.
REFLECTION_V1: Final = "grpc.reflection.v1.ServerReflection"
OPEN_SERVICES: Final = frozenset({health.SERVICE_NAME, reflection.SERVICE_NAME, REFLECTION_V1})
POLL_S: Final = 0.01
# With more places than this, one is reserved for hosts that have none.
MIN_PLACES: Final = 2
# Most refusals that wait for their turn. An RPC that waits takes some 10 kB.
MAX_WAITING_REFUSALS: Final = 2048
# The core also delivers RPCs that were cancelled before they were accepted. Its notice of that
# takes two turns of the event loop: of 128 hang-ups, 124 RPCs were begun after one turn, 40 after
# two and 34 after three.
CANCELLATION_TURNS: Final = 2
logger = logging.getLogger(__name__)


class RpcKind(Enum):
    """RPCs that are counted together."""

    KEYED = "keyed"
    OPEN_UNARY = "open_unary"
    OPEN_STREAM = "open_stream"

    @classmethod
    def of(cls, method: str) -> Self:
        """The kind of `/package.Service/Method`."""
        if service_of(method) not in OPEN_SERVICES:
            return cls.KEYED
        is_stream = method.rpartition("/")[2] in OPEN_STREAMS
        return cls.OPEN_STREAM if is_stream else cls.OPEN_UNARY


class DrainGate:
    """Holds RPCs and answers while the server closes. Belongs to the server's event loop."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._open = asyncio.Event()
        self._open.set()
        self._last_arrival = 0.0
        # Set once the server begins to close: streams read nothing more.
        self.closing = asyncio.Event()

    async def enter(self) -> None:
        """Note the arrival of an RPC and wait until it may run."""
        self._last_arrival = self._clock()
        await self.wait()

    async def wait(self) -> None:
        """Wait until answers may be sent."""
        if not self._open.is_set():
            await self._open.wait()

    async def hold(self, quiet_s: float, limit_s: float) -> None:
        """Hold RPCs and answers; return when none has arrived for `quiet_s`.

        By then every caller waits for an answer and sends nothing.
        """
        self._open.clear()
        self.closing.set()
        began = now = self._clock()
        while now - max(began, self._last_arrival) < quiet_s and now - began < limit_s:
            await asyncio.sleep(POLL_S)
            now = self._clock()

    def release(self) -> None:
        """Let all held RPCs and answers pass."""
        self._open.set()


class GuardInterceptor(grpc.aio.ServerInterceptor):
    """Outermost interceptor: passes an RPC on, or refuses it before it is read."""

    def __init__(self, telemetry: Telemetry, protection: Protection, gate: DrainGate) -> None:
        self._telemetry = telemetry
        self._gate = gate
        self._metrics = protection.metrics
        self._keys = protection.keys
        self._body_memory = protection.body_memory
        self._max_rpcs = {
            RpcKind.KEYED: protection.max_rpcs,
            RpcKind.OPEN_UNARY: MAX_OPEN_UNARY,
            RpcKind.OPEN_STREAM: MAX_OPEN_STREAMS,
        }
        # An RPC that lives this long after its deadline has a caller who does not read the answer.
        self._lifetime_s = protection.request_timeout_s + 2 * protection.client_timeout_s
        self._num_rpcs: Counter[RpcKind] = Counter()
        self._refusals = RefusalPace()
        self._proxies = protection.proxies
        self._num_waiting = 0
        self._timers: dict[asyncio.Task[Any], asyncio.TimerHandle] = {}

    @property
    def is_idle(self) -> bool:
        """Whether no RPC is running, apart from those of open services such as a health watch."""
        return not self._num_rpcs[RpcKind.KEYED]

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """Find the handler, or one that refuses; all methods but the open ones need a key."""
        method: str = handler_call_details.method
        kind = RpcKind.of(method)
        for _ in range(CANCELLATION_TURNS):
            await asyncio.sleep(0)
        try:
            if kind is RpcKind.KEYED:
                self._enter_caller(handler_call_details.invocation_metadata)
                self._body_memory.check(1)
            self._enter(kind)
            await self._gate.enter()
            handler = await continuation(handler_call_details)
            if handler is None and service_of(method) == INFERENCE_SERVICE:
                name = method.rpartition("/")[2][:100]
                raise NotSupported(
                    f"{name} is not supported: send tensors in messages, and change settings when "
                    "the server starts.",
                    code="unknown_rpc",
                )
        except Exception as error:
            await self._gate.wait()
            return refusal(error, self._telemetry, self._wait_for_turn)
        return handler

    async def _wait_for_turn(self, context: Any) -> None:
        """Return when a refusal may be sent to the caller of an RPC."""
        _, host = caller_of(context, self._proxies)
        if self._num_waiting < MAX_WAITING_REFUSALS:
            self._num_waiting += 1
            try:
                await self._refusals.wait(host, self._gate.closing)
            finally:
                self._num_waiting -= 1

    def _enter(self, kind: RpcKind) -> None:
        """Count the RPC until its task ends; one task runs the interceptors and the handler."""
        if self._num_rpcs[kind] >= self._max_rpcs[kind]:
            self._metrics.rejected.labels("rpcs").inc()
            raise Overloaded(
                "Too many RPCs are running; try again.", code="too_many_rpcs", retry_after_s=RETRY_S
            )
        task = asyncio.current_task()
        assert task is not None
        self._num_rpcs[kind] += 1
        if kind is RpcKind.KEYED:
            self._start_timer(task)

        def leave(ended: "asyncio.Task[Any]") -> None:
            self._num_rpcs[kind] -= 1
            timer = self._timers.pop(ended, None)
            if timer is not None:
                timer.cancel()

        task.add_done_callback(leave)

    def renew(self, task: "asyncio.Task[Any]") -> None:
        """Restart the lifetime of an RPC; a stream may last as long as it makes progress."""
        timer = self._timers.pop(task, None)
        if timer is not None:
            timer.cancel()
            self._start_timer(task)

    def _start_timer(self, task: "asyncio.Task[Any]") -> None:
        loop = asyncio.get_running_loop()
        self._timers[task] = loop.call_later(self._lifetime_s, task.cancel, UNREAD)

    def _enter_caller(self, metadata: Any) -> None:
        """Check the key, and count the RPC as its caller's until its task ends."""
        given = {key: value for key, value in metadata or () if isinstance(value, str)}
        leave = self._keys.enter(given.get("authorization"), given.get("x-api-key"))
        task = asyncio.current_task()
        assert task is not None
        task.add_done_callback(lambda _: leave())


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Makes each of our RPCs a call; health and reflection only get their messages checked.

    Every request of a stream is a call. `stream_errors` converts an error of one to an answer, by
    method; the request is None if it could not be parsed.
    """

    def __init__(
        self,
        telemetry: Telemetry,
        protection: Protection,
        gate: DrainGate,
        *,
        renew: Renew = lambda task: None,
        stream_errors: Mapping[str, StreamError] | None = None,
    ) -> None:
        self._renew = renew
        self._stream_errors = stream_errors or {}
        self._telemetry = telemetry
        self._gate = gate
        self._timeout_s = protection.request_timeout_s
        # Every request of a stream ends by its deadline, so a stream that is quiet for longer
        # is idle.
        self._stream_idle_s = protection.request_timeout_s + protection.client_timeout_s
        self._body_memory = protection.body_memory
        self._max_values = protection.max_message_values
        num_places = protection.num_receive_places
        # Idle streams hold places, so unary RPCs and health checks have their own.
        # Half of the RPCs, so that unread ones do not take all.
        max_waiting = max(1, protection.max_rpcs // 2)
        metrics = protection.metrics
        self._unary_places = ReceivePlaces(
            num_places, max_waiting, metrics, num_reserved=int(num_places > MIN_PLACES)
        )
        self._stream_limits = StreamLimits(
            memory=protection.body_memory,
            places=ReceivePlaces(STREAM_PLACES * num_places, max_waiting, metrics),
            max_requests=protection.max_stream_requests,
        )
        self._open_places = ReceivePlaces(
            NUM_OPEN_PLACES,
            MAX_OPEN_UNARY // 2,
            metrics,
            max_stall_s=OPEN_STALL_S,
            max_wait_s=OPEN_WAIT_S,
        )
        self._open_rpc = partial(open_rpc, Counter(), protection.proxies)
        self._proxies = protection.proxies
        self.rpcs = OpenRpcs()
        # Of our RPCs, by method.
        self._handlers: dict[str, Any] = {}

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """Wrap the RPC's handler."""
        method: str = handler_call_details.method
        if method in self._handlers:
            return self._handlers[method]
        handler = await continuation(handler_call_details)
        if handler is None:
            if method.startswith(OURS[1]):
                return None  # the guard refuses it
            # gRPC answers these itself. The caller's name must not become a label.
            unknown = grpc.StatusCode.UNIMPLEMENTED.name
            self._telemetry.metrics.calls.observe("other", unknown, None, {})
            return None
        if not method.startswith(OURS):
            return serving_small_messages(handler, self._open_places, self._open_rpc)
        # As handlers of streams they read their messages themselves, see `read_message`, as bytes.
        self._handlers[method] = ours = self._handler(method, handler)
        return ours

    def _handler(self, method: str, handler: Any) -> Any:
        rpc = Rpc.of(method, handler, self._max_values)
        answer: AnswerRpc = partial(self._answer, is_written=True)
        wrap: Callable[..., Any] = grpc.stream_stream_rpc_method_handler
        if handler.stream_stream is not None:
            answer = self._answer_stream
        elif method.rpartition("/")[2] in SMALL_ANSWERS:
            answer, wrap = self._answer, grpc.stream_unary_rpc_method_handler
        return wrap(partial(self._serve, answer, rpc))

    async def _serve(
        self, answer: AnswerRpc, rpc: Rpc, messages: Any, context: Any
    ) -> bytes | None:
        caller, host = caller_of(context, self._proxies)
        return await self._guarded(answer(rpc, caller), context, host)

    async def _guarded(
        self, work: Coroutine[Any, Any, bytes | None], context: Any, host: str
    ) -> bytes | None:
        """Turn unexpected exceptions into internal errors; gRPC would send their texts."""
        peer = context.peer()
        self.rpcs.enter(peer, host)
        try:
            return await work
        except grpc.aio.AbortError:
            raise
        except asyncio.CancelledError as reason:
            if UNREAD in reason.args:
                self.rpcs.give_up(peer, host, asyncio.get_running_loop().time())
            raise
        except grpc.aio.InternalError:
            # gRPC could not send: the RPC has ended, so there is no caller to answer.
            raise asyncio.CancelledError from None
        except Exception:
            logger.exception("unexpected error")
        finally:
            self.rpcs.leave(peer, host)
        error = internal_error(current_request_id())
        await context.abort(CODE[error.kind], error.message, error_metadata(error))
        raise AssertionError

    async def _answer(self, rpc: Rpc, context: Any, *, is_written: bool = False) -> bytes | None:
        call = self._begin(rpc.name, context)
        receive = partial(self._unary_places.read, context)
        answer, error = await self._call(
            rpc, context, call, lambda share: read_message(receive, rpc, share, call)
        )
        memory = call.answer_memory
        try:
            await self._gate.wait()
            metadata = call_metadata(call)
            if error is not None:
                code, message = CODE[error.kind], error.message
                trailing = (*metadata, *error_metadata(error))
                # The context keeps the exception that `abort` raises, and with it this frame.
                # Delete what would keep the request in memory.
                del call, error
                await context.abort(code, message, trailing_metadata=trailing)
            context.set_trailing_metadata(metadata)
            assert answer is not None
            if not is_written:
                return answer
            await write_answer(answer, memory, context)
            return None
        finally:
            if memory is not None:
                memory.free()

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
                    limits=self._stream_limits,
                    renew=renew,
                    closing=self._gate.closing,
                )
                if await stream.run():
                    return
            error = unavailable(GateState.DRAINING)
        except Overloaded as refused:
            error = refused
        except TimeoutError:
            error = DeadlineExceeded(
                f"The stream was idle for {self._stream_idle_s:g} s; open a new one.",
                code="idle_stream",
            )
        await self._gate.wait()
        await context.abort(
            CODE[error.kind], error.message, trailing_metadata=error_metadata(error)
        )

    async def _answer_one(self, rpc: Rpc, context: Any, item: StreamItem) -> bytes:
        """Answer one request of a stream; an error is an answer too."""
        request: Message | None = None

        async def read(share: BodyShare) -> Message:
            nonlocal request
            request = parse_message(item.raw, rpc, item.share)
            return request

        call = self._begin(rpc.name, context)
        call.item, call.answer_order = item.index, item.order
        answer, error = await self._call(rpc, context, call, read)
        if error is None:
            assert answer is not None
            item.memory = call.answer_memory
            return answer
        call.free_memory()
        return write_message(self._stream_errors[rpc.name](error, request, call))

    async def _call(
        self, rpc: Rpc, context: Any, call: Call, read: Read
    ) -> tuple[bytes | None, ServiceError | None]:
        """Answer or error of one call, counted, traced and logged."""
        code = grpc.StatusCode.CANCELLED
        call.error = "client_left"
        try:
            answer, error = await self._run(rpc, context, call, read)
            code = CODE[error.kind] if error else grpc.StatusCode.OK
            call.error = error.code if error else None
        except BaseException:
            call.free_memory()  # no answer is sent
            raise
        finally:
            self._telemetry.end(call, rpc.name, code.name, is_fault=code in FAULTS)
        return answer, error

    async def _run(
        self, rpc: Rpc, context: Any, call: Call, read: Read
    ) -> tuple[bytes | None, ServiceError | None]:
        try:
            given = dict(context.invocation_metadata() or ()).get("x-request-priority")
            call.priority = accept_priority(given, param="x-request-priority")
            with self._body_memory.share() as share:
                request = await read(share)
                answer = await rpc.behavior(request, context)
                if call.answer_memory is not None:
                    # The task holds what it waited for last, the arrays, until it waits again.
                    await asyncio.sleep(0)
                return write_message(answer), None
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
        host = peer_host(context.peer())
        call = self._telemetry.begin("grpc", name, carried, timeout_s, host=host)
        call.answer_form = "protobuf"
        return call


def carried_metadata(metadata: Any) -> dict[str, str]:
    """The metadata that telemetry reads; none of it is binary."""
    return {name: value for name, value in metadata or () if name in CARRIED}


def call_metadata(call: Call) -> Metadata:
    """Trailing metadata of every answer and error."""
    return (("x-request-id", call.request_id), ("server-timing", call.server_timing()))


def service_of(method: str) -> str:
    """`package.Service` of `/package.Service/Method`."""
    return method.lstrip("/").rpartition("/")[0]


def refusal(
    cause: Exception, telemetry: Telemetry, wait_for_turn: Callable[[Any], Awaitable[None]]
) -> Any:
    """A handler for any kind of RPC that refuses it without reading a message."""

    async def refuse(messages: Any, context: Any) -> None:
        carried = carried_metadata(context.invocation_metadata())
        call = telemetry.begin("grpc", "other", carried, 0.0)
        if isinstance(cause, ServiceError):
            error = cause
        else:
            logger.error("unexpected error", exc_info=cause)
            error = internal_error(call.request_id)
        call.error = error.code
        code = CODE[error.kind]
        telemetry.end(call, "other", code.name)
        trailing = (*call_metadata(call), *error_metadata(error))
        if error.kind in PACED_KINDS:
            await wait_for_turn(context)
        await context.abort(code, error.message, trailing_metadata=trailing)

    handler: Callable[..., Any] = grpc.stream_stream_rpc_method_handler
    return handler(refuse)
