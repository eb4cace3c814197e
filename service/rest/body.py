"""Reads a request's body in bounds: of bytes, of the memory for all bodies, and of time."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from service.body_memory import BodyMemory, BodyShare
from service.errors import RequestTooLarge, TooSlow, UnsupportedMedia
from service.rest.direct import Message, Receive
from service.rest.errors import ClientLeft

MAX_LENGTH_DIGITS: Final = 18


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyLimits:
    """What one body may take.

    Attributes:
        max_bytes: Of one body.
        memory: For the bodies of all requests.
        timeout_s: How far a body may fall behind `bytes_per_s`, from its head on.
        bytes_per_s: How fast it must come on the whole.
    """

    max_bytes: int
    memory: BodyMemory
    timeout_s: float
    bytes_per_s: int


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
