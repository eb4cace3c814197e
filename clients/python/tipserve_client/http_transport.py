"""Sends requests over HTTP, on connections that are kept."""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import httpx

from tipserve_client.answers import ModelInfo
from tipserve_client.asks import Ask
from tipserve_client.errors import DeadlineExceeded, InternalError, Unavailable
from tipserve_client.http_wire import MODELS, PATHS, read_answer, read_error, read_models, write_ask
from tipserve_client.target import Target

NOT_OURS: Final = "The answer is not one of tipserve's; is the URL right?"


class HttpTransport:
    """Thread-safe; of a synchronous client."""

    def __init__(self, target: Target, *, max_connections: int) -> None:
        self._client = httpx.Client(**_options(target, max_connections))

    def send(self, ask: Ask, timeout_s: float) -> Any:
        """The answer to a request.

        Raises:
            TipserveError: There is none.
        """
        with _told():
            answer = self._client.send(_request(self._client, ask, timeout_s))
        return _read(ask, answer)

    def models(self, timeout_s: float) -> list[ModelInfo]:
        """What is served.

        Raises:
            TipserveError: There is no answer.
        """
        with _told():
            answer = self._client.get(MODELS, timeout=timeout_s)
        return _read_models(answer)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


class AsyncHttpTransport:
    """Of an asynchronous client; belongs to one event loop."""

    def __init__(self, target: Target, *, max_connections: int) -> None:
        self._client = httpx.AsyncClient(**_options(target, max_connections))

    async def send(self, ask: Ask, timeout_s: float) -> Any:
        """The answer to a request.

        Raises:
            TipserveError: There is none.
        """
        with _told():
            answer = await self._client.send(_request(self._client, ask, timeout_s))
        return _read(ask, answer)

    async def models(self, timeout_s: float) -> list[ModelInfo]:
        """What is served.

        Raises:
            TipserveError: There is no answer.
        """
        with _told():
            answer = await self._client.get(MODELS, timeout=timeout_s)
        return _read_models(answer)

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
    # The server answers at the deadline; a little later nobody does.
    return client.build_request(
        "POST", PATHS[ask.method], content=write_ask(ask), headers=headers, timeout=timeout_s + 1
    )


@contextmanager
def _told() -> Iterator[None]:
    """What goes wrong on the way, in our own errors."""
    try:
        yield
    except (httpx.ReadTimeout, httpx.WriteTimeout, httpx.PoolTimeout) as error:
        raise DeadlineExceeded(
            "The server did not answer in time.", code="deadline_exceeded"
        ) from error
    except httpx.TransportError as error:
        raise Unavailable(f"The server cannot be reached: {error}", code="unreachable") from error
    except httpx.DecodingError as error:
        raise InternalError(NOT_OURS, code="invalid_answer") from error


def _read(ask: Ask, answer: httpx.Response) -> Any:
    content = _content(answer)
    request_id = answer.headers.get("x-request-id")
    with _understood():
        return read_answer(ask, content, request_id)


def _read_models(answer: httpx.Response) -> list[ModelInfo]:
    content = _content(answer)
    with _understood():
        return read_models(content)


def _content(answer: httpx.Response) -> bytes:
    if answer.status_code != 200:
        raise read_error(answer.status_code, answer.headers, answer.content)
    return answer.content


@contextmanager
def _understood() -> Iterator[None]:
    """What answers with success and yet is no such service."""
    try:
        yield
    except (ValueError, LookupError, TypeError) as error:
        raise InternalError(NOT_OURS, code="invalid_answer") from error
