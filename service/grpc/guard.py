"""The first thing that an RPC meets: no key, or no room, and it is answered before it is read.

Health and reflection are open. The kubelet's probes cannot send a key, and what reflection tells is
the contract as it stands in `proto/`; neither says anything about a request or its answer.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

import grpc
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection

from service.errors import NotSupported, Overloaded, ServiceError, internal_error
from service.grpc.errors import CODE, error_metadata
from service.grpc.gate import Gate
from service.grpc.interceptors import INFERENCE_SERVICE, call_metadata, carried_metadata
from service.monitoring.telemetry import Telemetry
from service.safety.protection import Protection

logger = logging.getLogger(__name__)

RETRY_S: Final = 1.0
# RPCs of the open services at once. They may last for ever, and need no key.
MAX_OPEN_RPCS: Final = 64
OPEN_SERVICES: Final = frozenset({health.SERVICE_NAME, reflection.SERVICE_NAME})


class GuardInterceptor(grpc.aio.ServerInterceptor):
    """Outermost: lets an RPC through, or answers it without reading it."""

    def __init__(self, telemetry: Telemetry, protection: Protection, gate: Gate) -> None:
        self._telemetry = telemetry
        self._gate = gate
        self._metrics = protection.metrics
        self._keys = protection.keys
        self._body_memory = protection.body_memory
        self._max_rpcs = {False: protection.max_rpcs, True: MAX_OPEN_RPCS}
        # Long after its deadline an RPC can only be one whose answer nobody takes.
        self._lifetime_s = protection.request_timeout_s + 2 * protection.client_timeout_s
        self._num_rpcs: Counter[bool] = Counter()
        self._timers: dict[asyncio.Task[Any], asyncio.TimerHandle] = {}

    @property
    def is_idle(self) -> bool:
        """Whether no RPC is running but those of open services, such as a watch of health."""
        return not self._num_rpcs[False]

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """Find the handler, or one that refuses; every method that is not open needs a key."""
        method: str = handler_call_details.method
        is_open = service_of(method) in OPEN_SERVICES
        try:
            if not is_open:
                self._check_key(handler_call_details.invocation_metadata)
                self._body_memory.check()
            self._enter(is_open)
            await self._gate.come_in()
            handler = await continuation(handler_call_details)
            if handler is None and service_of(method) == INFERENCE_SERVICE:
                raise NotSupported(
                    f"{method.rpartition('/')[2][:100]} is not offered here; tensors are sent in "
                    "messages, and settings are changed at the start of the server.",
                    code="unknown_rpc",
                )
        except Exception as error:
            await self._gate.pass_by()
            return refusal(error, self._telemetry)
        return handler

    def _enter(self, is_open: bool) -> None:
        """Count the RPC until its task ends, which is also what finds and runs its handler."""
        if self._num_rpcs[is_open] >= self._max_rpcs[is_open]:
            self._metrics.rejected.labels("rpcs").inc()
            raise Overloaded(
                "Too many RPCs are running; try again.", code="too_many_rpcs", retry_after_s=RETRY_S
            )
        task = asyncio.current_task()
        assert task is not None
        self._num_rpcs[is_open] += 1
        if not is_open:
            self._limit(task)

        def leave(ended: "asyncio.Task[Any]") -> None:
            self._num_rpcs[is_open] -= 1
            timer = self._timers.pop(ended, None)
            if timer is not None:
                timer.cancel()

        task.add_done_callback(leave)

    def renew(self, task: "asyncio.Task[Any]") -> None:
        """Let an RPC live on that is getting somewhere: a stream may last as long as it does."""
        timer = self._timers.pop(task, None)
        if timer is not None:
            timer.cancel()
            self._limit(task)

    def _limit(self, task: "asyncio.Task[Any]") -> None:
        loop = asyncio.get_running_loop()
        self._timers[task] = loop.call_later(self._lifetime_s, task.cancel)

    def _check_key(self, metadata: Any) -> None:
        given = {key: value for key, value in metadata or () if isinstance(value, str)}
        self._keys.check(given.get("authorization"), given.get("x-api-key"))


def service_of(method: str) -> str:
    """`/package.Service/Method` as `package.Service`."""
    return method.lstrip("/").rpartition("/")[0]


def refusal(cause: Exception, telemetry: Telemetry) -> Any:
    """A handler for any kind of RPC that answers at once; a streamed message is never asked for."""

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
        await context.abort(code, error.message, trailing_metadata=trailing)

    handler: Callable[..., Any] = grpc.stream_stream_rpc_method_handler
    return handler(refuse)
