"""Sends requests over HTTP, on connections that are kept open. Only this needs httpx."""

import time
from collections.abc import Callable
from typing import Any

import httpx

from tipserve_client import http_wire
from tipserve_client.connection import Target
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
