"""Sends requests over HTTP or gRPC, on connections that are kept open."""

import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import httpx

from tipserve_client import grpc_wire, http_wire
from tipserve_client.concurrency import async_call_rpc
from tipserve_client.connection import Target
from tipserve_client.generated import encoder_service_pb2
from tipserve_client.generated.encoder_service_pb2_grpc import EncoderServiceStub
from tipserve_client.requests import Request
from tipserve_client.results import ModelInfo


class AsyncHttpTransport:
    """Sends requests over HTTP."""

    def __init__(self, target: Target) -> None:
        self._client = httpx.AsyncClient(**http_wire.client_options(target))
        self._clock: Callable[[], float] = time.monotonic

    async def send(self, request: Request, timeout_s: float) -> Any:
        """Send a request and return its answer.

        Raises:
            TipserveError: The request failed.
        """
        path = http_wire.PATHS[request.method]
        content = http_wire.write_request(request)
        response = await self._exchange("POST", path, timeout_s, **content)
        return http_wire.read_response(request, response)

    async def models(self, timeout_s: float) -> list[ModelInfo]:
        """List the served models.

        Raises:
            TipserveError: The request failed.
        """
        response = await self._exchange("GET", http_wire.MODELS, timeout_s)
        return http_wire.read_models(response)

    async def _exchange(
        self, method: str, path: str, timeout_s: float, **content: Any
    ) -> http_wire.Response:
        """Send an HTTP request and read the whole response.

        httpx limits the time of each read, not their sum, so the deadline is checked after each.
        """
        limit_s = timeout_s + http_wire.GRACE_S
        until = self._clock() + limit_s
        request = self._client.build_request(method, path, timeout=limit_s, **content)
        request.headers["X-Request-Timeout-Ms"] = str(max(1, int(1000 * timeout_s)))
        with http_wire.translated_errors():
            response = await self._client.send(request, stream=True)
            parts = []
            try:
                async for part in response.aiter_bytes():
                    if self._clock() > until:
                        raise http_wire.deadline_exceeded()
                    parts.append(part)
            finally:
                await response.aclose()
        return http_wire.Response(response.status_code, response.headers, b"".join(parts))

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


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
        rpc = getattr(self._stub, grpc_wire.RPCS[request.method][0])
        message = grpc_wire.write_request(request)
        answer, metadata = await self._call(rpc, message, timeout_s)
        return grpc_wire.read_response(request, answer, grpc_wire.request_id(metadata))

    async def models(self, timeout_s: float) -> list[ModelInfo]:
        """List the served models.

        Raises:
            TipserveError: The request failed.
        """
        message = encoder_service_pb2.ListModelsRequest()
        answer, _ = await self._call(self._stub.ListModels, message, timeout_s)
        return [grpc_wire.read_model(model) for model in answer.models]

    async def _call(self, rpc: Any, message: Any, timeout_s: float) -> tuple[Any, Any]:
        try:
            return await async_call_rpc(rpc, message, timeout=timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise grpc_wire.rpc_error(error) from None

    def stream(self, requests: AsyncIterator[Any]) -> Any:
        """Open a stream: an iterator of responses that can be cancelled."""
        return self._stub.Stream(requests, metadata=self._metadata)

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()
