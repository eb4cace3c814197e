"""Reads a request's body in bounds: of bytes, of the memory for all bodies, and of time."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from service.errors import InvalidRequest, RequestTooLarge, TooSlow, UnsupportedMedia
from service.rest.direct import Message, Receive
from service.rest.errors import ClientLeft
from service.safety.body_memory import BodyMemory, BodyShare
from service.safety.url_fetch.fetcher import UrlFetcher

MAX_LENGTH_DIGITS: Final = 18


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyLimits:
    """What one body may take.

    Attributes:
        max_bytes: Of one body.
        memory: For the bodies of all requests.
        timeout_s: How far a body may fall behind `bytes_per_s`, from its head on.
        bytes_per_s: How fast it must come on the whole.
        url_fetcher: None fetches no URL.
    """

    max_bytes: int
    memory: BodyMemory
    timeout_s: float
    bytes_per_s: int
    url_fetcher: UrlFetcher | None = None


# Where a request's scope holds its body, for those who fetch more to it.
SCOPE_KEY: Final = "tipserve.body"


class Body:
    """An ASGI `receive` that keeps to the limits."""

    def __init__(self, receive: Receive, limits: BodyLimits, share: BodyShare) -> None:
        self._receive = receive
        self._limits = limits
        self._share = share
        self._num_bytes = 0
        self._is_complete = False
        self._began = asyncio.get_running_loop().time()

    def check_head(self, headers: Mapping[bytes, str]) -> None:
        """Refuse what the head gives away, and take the memory that it asks for.

        Nothing has been received then, so a caller who waits for `100 Continue` sends nothing.

        Raises:
            RequestTooLarge: The announced length is over the limit.
            Overloaded: There is no memory for it now.
            UnsupportedMedia: The body is compressed.
        """
        encoding = headers.get(b"content-encoding", "identity").strip().lower()
        if encoding != "identity":
            raise UnsupportedMedia(
                "Bodies are read as they are: send this one without Content-Encoding.",
                param="Content-Encoding",
            )
        text = headers.get(b"content-length", "0")
        is_number = text.isascii() and text.isdigit()
        # What is no number was refused by the HTTP parser already.
        length = int(text[:MAX_LENGTH_DIGITS]) if is_number else 0
        if length > self._limits.max_bytes:
            raise self._too_large()
        self._share.hold(length)
        if b"transfer-encoding" in headers:
            self._limits.memory.check()

    async def __call__(self) -> Message:
        """The next message; after the body, waits for the caller to leave.

        Raises:
            ClientLeft: The caller closed the connection.
            RequestTooLarge: More came than the limit, whatever the head said.
            Overloaded: There is no memory for what came.
            TooSlow: Too little came in too long a time.
        """
        message = await (self._receive() if self._is_complete else self._receive_in_time())
        if message["type"] == "http.disconnect":
            raise ClientLeft
        self._num_bytes += len(message.get("body", b""))
        if self._num_bytes > self._limits.max_bytes:
            raise self._too_large()
        self._share.hold(self._num_bytes)
        self._is_complete = not message.get("more_body", False)
        return message

    async def fetch(self, url: str, *, param: str) -> bytes:
        """An image that the body names by URL; it counts towards the memory for bodies.

        Raises:
            InvalidRequest: No URL is fetched here, or not this one, or no image came of it.
            Overloaded: There is no memory for it.
        """
        if self._limits.url_fetcher is None:
            raise InvalidRequest(
                f"{param} is a URL, and this server fetches none: send the image itself as "
                "base64, or have the server's setting url_hosts name the hosts to fetch from.",
                code="urls_not_enabled",
                param=param,
            )
        return await self._limits.url_fetcher.fetch(url, self._hold_more, param=param)

    def _hold_more(self, num_bytes: int) -> None:
        self._share.hold(self._share.num_bytes + num_bytes)

    async def _receive_in_time(self) -> Message:
        limits = self._limits
        due = self._began + limits.timeout_s + self._num_bytes / limits.bytes_per_s
        try:
            async with asyncio.timeout_at(due):
                return await self._receive()
        except TimeoutError:
            raise TooSlow(
                f"The body came slower than {limits.bytes_per_s} bytes a second for "
                f"{limits.timeout_s:g} seconds."
            ) from None

    def _too_large(self) -> RequestTooLarge:
        return RequestTooLarge(f"The body is larger than {self._limits.max_bytes} bytes.")
