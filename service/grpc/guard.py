"""The first thing that an RPC meets: no key, no service, before its message is read.

Health and reflection are open. The kubelet's probes cannot send a key, and what reflection tells is
the contract as it stands in `proto/`; neither says anything about a request or its answer.
"""

from collections.abc import Callable
from typing import Any, Final

import grpc
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection

from service.api_keys import ApiKeys
from service.errors import ServiceError
from service.grpc.errors import CODE, error_metadata
from service.grpc.interceptors import call_metadata, carried_metadata
from service.telemetry import Telemetry

OPEN_SERVICES: Final = frozenset({health.SERVICE_NAME, reflection.SERVICE_NAME})


class GuardInterceptor(grpc.aio.ServerInterceptor):
    """Outermost: lets an RPC through, or answers it without reading it."""

    def __init__(self, keys: ApiKeys, telemetry: Telemetry) -> None:
        self._keys = keys
        self._telemetry = telemetry

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """Find the handler, or one that refuses; every method that is not open needs a key."""
        method: str = handler_call_details.method
        try:
            if service_of(method) not in OPEN_SERVICES:
                self._check_key(handler_call_details.invocation_metadata)
        except ServiceError as error:
            return refusal(error, self._telemetry)
        return await continuation(handler_call_details)

    def _check_key(self, metadata: Any) -> None:
        given = {key: value for key, value in metadata or () if isinstance(value, str)}
        self._keys.check(given.get("authorization"), given.get("x-api-key"))


def service_of(method: str) -> str:
    """`/package.Service/Method` as `package.Service`."""
    return method.lstrip("/").rpartition("/")[0]


def refusal(error: ServiceError, telemetry: Telemetry) -> Any:
    """A handler for any kind of RPC that answers at once; a streamed message is never asked for."""

    async def refuse(messages: Any, context: Any) -> None:
        carried = carried_metadata(context.invocation_metadata())
        call = telemetry.begin("grpc", "other", carried, 0.0)
        call.error = error.code
        code = CODE[error.kind]
        telemetry.end(call, "other", code.name)
        trailing = (*call_metadata(call), *error_metadata(error))
        await context.abort(code, error.message, trailing_metadata=trailing)

    handler: Callable[..., Any] = grpc.stream_stream_rpc_method_handler
    return handler(refuse)
