"""Sends requests over HTTP, on connections that are kept."""

import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import httpx

from tipserve_client.answers import ModelInfo
from tipserve_client.asks import Ask
from tipserve_client.errors import DeadlineExceeded, InternalError, Unavailable
from tipserve_client.http_wire import MODELS, PATHS, read_answer, read_error, read_models, write_ask
from tipserve_client.target import Target

# The server answers at the deadline; a little later nobody does.
GRACE_S: Final = 1.0
NOT_OURS: Final = "The answer is not one of tipserve's; is the URL right?"


class HttpTransport:
    """Thread-safe; of a synchronous client."""

    def __init__(self, target: Target, *, max_connections: int) -> None:
        self._client = httpx.Client(**_options(target, max_connections))
        self._clock: Callable[[], float] = time.monotonic

    def send(self, ask: Ask, timeout_s: float) -> Any:
        """The answer to a request.

        Raises:
            TipserveError: There is none.
        """
        return _read(ask, *self._exchange(_request(self._client, ask, timeout_s), timeout_s))

    def models(self, timeout_s: float) -> list[ModelInfo]:
        """What is served.

        Raises:
            TipserveError: There is no answer.
        """
        request = self._client.build_request("GET", MODELS, timeout=timeout_s)
        return _read_models(*self._exchange(request, timeout_s))

    def _exchange(self, request: httpx.Request, timeout_s: float) -> tuple[httpx.Response, bytes]:
        """An answer and its body; httpx itself bounds the time of each part, not of all."""
        until = self._clock() + timeout_s + GRACE_S
        with _told():
            answer = self._client.send(request, stream=True)
            try:
                parts = [_in_time(part, until, self._clock) for part in answer.iter_bytes()]
            finally:
                answer.close()
        return answer, b"".join(parts)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


class AsyncHttpTransport:
    """Of an asynchronous client; belongs to one event loop."""

    def __init__(self, target: Target, *, max_connections: int) -> None:
        self._client = httpx.AsyncClient(**_options(target, max_connections))
        self._clock: Callable[[], float] = time.monotonic

    async def send(self, ask: Ask, timeout_s: float) -> Any:
        """The answer to a request.

        Raises:
            TipserveError: There is none.
        """
        return _read(ask, *await self._exchange(_request(self._client, ask, timeout_s), timeout_s))

    async def models(self, timeout_s: float) -> list[ModelInfo]:
        """What is served.

        Raises:
            TipserveError: There is no answer.
        """
        request = self._client.build_request("GET", MODELS, timeout=timeout_s)
        return _read_models(*await self._exchange(request, timeout_s))

    async def _exchange(
        self, request: httpx.Request, timeout_s: float
    ) -> tuple[httpx.Response, bytes]:
        """An answer and its body; httpx itself bounds the time of each part, not of all."""
        until = self._clock() + timeout_s + GRACE_S
        with _told():
            answer = await self._client.send(request, stream=True)
            try:
                parts = [_in_time(part, until, self._clock) async for part in answer.aiter_bytes()]
            finally:
                await answer.aclose()
        return answer, b"".join(parts)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


def _options(target: Target, max_connections: int) -> dict[str, Any]:
    options: dict[str, Any] = {
        "base_url": target.base_url,
        "headers": target.headers,
        "limits": httpx.Limits(
            max_connections=max_connections, max_keepalive_connections=max_connections
        ),
    }
    if target.is_secure:
        tls = target.tls
        context = ssl.create_default_context(cafile=None if tls.ca is None else str(tls.ca))
        if tls.cert is not None and tls.key is not None:
            context.load_cert_chain(tls.cert, tls.key)
        options["verify"] = context
    return options


def _request(client: httpx.Client | httpx.AsyncClient, ask: Ask, timeout_s: float) -> httpx.Request:
    headers = {
        "Content-Type": "application/json",
        "Accept": "application/json",
        "X-Request-Timeout-Ms": str(max(1, int(1000 * timeout_s))),
    }
    return client.build_request(
        "POST",
        PATHS[ask.method],
        content=write_ask(ask),
        headers=headers,
        timeout=timeout_s + GRACE_S,
    )


def _in_time(part: bytes, until: float, clock: Callable[[], float]) -> bytes:
    if clock() > until:
        raise _too_late()
    return part


def _too_late() -> DeadlineExceeded:
    return DeadlineExceeded("The server did not answer in time.", code="deadline_exceeded")


@contextmanager
def _told() -> Iterator[None]:
    """What goes wrong on the way, in our own errors."""
    try:
        yield
    except (httpx.ReadTimeout, httpx.WriteTimeout, httpx.PoolTimeout) as error:
        raise _too_late() from error
    except httpx.TransportError as error:
        raise Unavailable(f"The server cannot be reached: {error}", code="unreachable") from error
    except httpx.DecodingError as error:
        raise InternalError(NOT_OURS, code="invalid_answer") from error


def _read(ask: Ask, answer: httpx.Response, content: bytes) -> Any:
    _check(answer, content)
    request_id = answer.headers.get("x-request-id")
    with _understood():
        return read_answer(ask, content, request_id)


def _read_models(answer: httpx.Response, content: bytes) -> list[ModelInfo]:
    _check(answer, content)
    with _understood():
        return read_models(content)


def _check(answer: httpx.Response, content: bytes) -> None:
    if answer.status_code != 200:
        raise read_error(answer.status_code, answer.headers, content)


@contextmanager
def _understood() -> Iterator[None]:
    """What answers with success and yet is no such service."""
    try:
        yield
    except (ValueError, LookupError, TypeError) as error:
        raise InternalError(NOT_OURS, code="invalid_answer") from error
