"""What sends requests; over gRPC, on a connection that is kept open."""

from collections.abc import AsyncIterator
from typing import Any, Protocol

import grpc

from tipserve_client import grpc_wire
from tipserve_client.concurrency import async_call_rpc
from tipserve_client.connection import Target
from tipserve_client.generated.encoder_service_pb2_grpc import EncoderServiceStub
from tipserve_client.requests import Request


class AsyncTransport(Protocol):
    """Sends requests; every method raises a `TipserveError` if that fails."""

    async def send(self, request: Request, timeout_s: float) -> Any:
        """Send a request and return its answer."""

    async def close(self) -> None:
        """Close the connections."""


def async_connect(target: Target) -> AsyncTransport:
    """The transport of a URL."""
    if target.protocol == "grpc":
        return AsyncGrpcTransport(target)
    from tipserve_client._async.http_transport import AsyncHttpTransport  # noqa: PLC0415

    return AsyncHttpTransport(target)


class AsyncGrpcTransport:
    """Sends requests over gRPC."""

    def __init__(self, target: Target) -> None:
        options = grpc_wire.CHANNEL_OPTIONS
        if target.is_secure:
            credentials = grpc_wire.channel_credentials(target)
            self._channel = grpc.aio.secure_channel(target.address, credentials, options)
        else:
            self._channel = grpc.aio.insecure_channel(target.address, options)
        self._stub: Any = EncoderServiceStub(self._channel)
        self._metadata = tuple(target.headers.items())

    async def send(self, request: Request, timeout_s: float) -> Any:
        """Send a request and return its answer.

        Raises:
            TipserveError: The request failed.
        """
        rpc = getattr(self._stub, grpc_wire.RPCS[request.method])
        message = grpc_wire.write_request(request)
        options = {"timeout": timeout_s, "metadata": self._metadata}
        try:
            answer, metadata = await async_call_rpc(rpc, message, **options)
        except grpc.RpcError as error:
            raise grpc_wire.rpc_error(error) from None
        return grpc_wire.read_response(request, answer, grpc_wire.request_id(metadata))

    def stream(self, requests: AsyncIterator[Any]) -> Any:
        """Open a stream: an iterator of responses that can be cancelled."""
        return self._stub.Stream(requests, metadata=self._metadata)

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()
