"""Sends requests over HTTP, on connections that are kept open. Only this needs httpx2."""

import time
from collections.abc import Callable
from typing import Any

import httpx2

from tipserve_client import http_wire
from tipserve_client.connection import Target
from tipserve_client.requests import Request


class AsyncHttpTransport:
    """Sends requests over HTTP."""

    def __init__(self, target: Target) -> None:
        self._client = httpx2.AsyncClient(**http_wire.client_options(target))
        self._clock: Callable[[], float] = time.monotonic

    async def send(self, request: Request, timeout_s: float) -> Any:
        """Send a request and return its answer.

        Raises:
            TipserveError: The request failed.
        """
        limit_s = timeout_s + http_wire.GRACE_S
        until = self._clock() + limit_s
        asked = self._client.build_request(timeout=limit_s, **http_wire.write_request(request))
        asked.headers["X-Request-Timeout-Ms"] = str(max(1, int(1000 * timeout_s)))
        with http_wire.translated_errors():
            response = await self._client.send(asked, stream=True)
            parts = []
            try:
                async for part in response.aiter_bytes():
                    # httpx2 limits the time of each read, not their sum.
                    if self._clock() > until:
                        raise http_wire.deadline_exceeded()
                    parts.append(part)
            finally:
                await response.aclose()
        answer = http_wire.Response(response.status_code, response.headers, b"".join(parts))
        return http_wire.read_response(request, answer)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()
