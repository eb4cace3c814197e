"""Fetches one image: bounded in hops, bytes and seconds, and silent about what went wrong.

Whoever may name a URL must not learn from our answer what is behind it, so all failures read alike;
the log has the reason under the request id.
"""

import asyncio
import logging
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from urllib.parse import urljoin

import httpcore2

from service.errors import InvalidRequest
from service.safety.url_fetch.network import PinnedBackend
from service.safety.url_fetch.policy import Target, UrlPolicy, UrlRefused

REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
MAX_REDIRECTS: Final = 3
MAX_AT_ONCE: Final = 16

HTTP_ERRORS: Final = (
    httpcore2.NetworkError,
    httpcore2.ProtocolError,
    httpcore2.TimeoutException,
    httpcore2.UnsupportedProtocol,
)

# Told how many bytes came; may raise to end the fetch.
Hold = Callable[[int], None]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchLimits:
    """What one image may take: bytes, and seconds from the request to its last byte."""

    max_bytes: int
    timeout_s: float


class FetchFailed(Exception):
    """Why there is no image; for the log."""


class UrlFetcher:
    """Fetches from the hosts of a policy. Belongs to one event loop."""

    def __init__(
        self,
        policy: UrlPolicy,
        limits: FetchLimits,
        *,
        backend: PinnedBackend | None = None,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self._policy = policy
        self._limits = limits
        self._backend = backend or PinnedBackend()
        self._context = context or ssl.create_default_context()
        self._places = asyncio.Semaphore(MAX_AT_ONCE)

    async def fetch(self, url: str, hold: Hold, *, param: str) -> bytes:
        """The bytes behind a URL.

        Args:
            url: As it came.
            hold: Called with the length of each piece before it is kept.
            param: The field that the URL stands in.

        Raises:
            InvalidRequest: The URL is not allowed, or no image came of it.
        """
        try:
            target = self._policy.target_of(url)
        except UrlRefused as error:
            raise InvalidRequest(
                f"{param}: {error}.", code="url_not_allowed", param=param
            ) from None
        try:
            async with asyncio.timeout(self._limits.timeout_s), self._places:
                return await self._follow(target, url, hold)
        except (FetchFailed, UrlRefused, TimeoutError, *HTTP_ERRORS) as error:
            reason = f"{type(error).__name__}: {error}"
            logger.info("a URL was not fetched", extra={"fields": {"reason": reason}})
        raise InvalidRequest(
            f"{param}: no image could be fetched from this URL.",
            code="url_fetch_failed",
            param=param,
        )

    async def _follow(self, target: Target, url: str, hold: Hold) -> bytes:
        """Ask, and ask again where the answer sends us, each time by all the rules."""
        for _ in range(MAX_REDIRECTS + 1):
            found = await self._ask(target, hold)
            if isinstance(found, bytes):
                return found
            try:
                url = urljoin(url, found)
            except ValueError:
                raise FetchFailed("the redirect is not to a URL") from None
            target = self._policy.target_of(url)
        raise FetchFailed("too many redirects")

    async def _ask(self, target: Target, hold: Hold) -> bytes | str:
        """One request on a connection of its own: the image, or where to go instead."""
        host = target.host if target.port == 443 else f"{target.host}:{target.port}"
        request = httpcore2.Request(
            "GET",
            httpcore2.URL(
                scheme=b"https",
                host=target.host.encode(),
                port=target.port,
                target=target.path.encode(),
            ),
            headers=[
                ("Host", host),
                ("Accept", "image/*"),
                ("Accept-Encoding", "identity"),
                ("User-Agent", "tipserve"),
                ("Connection", "close"),
            ],
        )
        async with httpcore2.AsyncConnectionPool(
            ssl_context=self._context, network_backend=self._backend, max_connections=1
        ) as connections:
            response = await connections.handle_async_request(request)
            try:
                return await self._read(response, hold)
            finally:
                await response.aclose()

    async def _read(self, response: httpcore2.Response, hold: Hold) -> bytes | str:
        headers = {name.lower(): value.decode("latin-1") for name, value in response.headers}
        if response.status in REDIRECTS and b"location" in headers:
            return headers[b"location"]
        if response.status != 200:
            raise FetchFailed(f"status {response.status}")
        if headers.get(b"content-encoding", "identity").strip().lower() != "identity":
            raise FetchFailed("the body is compressed, although that was not asked for")
        length = headers.get(b"content-length", "0")
        if not length.isdigit() or int(length[:18]) > self._limits.max_bytes:
            raise FetchFailed("too many bytes are announced")
        pieces: list[bytes] = []
        num_bytes = 0
        async for piece in response.aiter_stream():
            num_bytes += len(piece)
            if num_bytes > self._limits.max_bytes:
                raise FetchFailed("too many bytes")
            hold(len(piece))
            pieces.append(piece)
        return b"".join(pieces)
