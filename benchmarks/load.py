"""Sends requests over keep-alive connections with fixed concurrency and records each answer.

The clients do as little as possible, because they share the cores with the server they measure.
"""

import asyncio
import io
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

HEAD_END = b"\r\n\r\n"
LENGTH = b"content-length:"
ANSWER_LIMIT_S = 120.0

# Sends one request and returns the status of the answer; the argument is the request's number.
Ask = Callable[[int], Awaitable[str]]


@dataclass(slots=True)
class Load:
    """Results of many requests."""

    wall_s: float = 0.0
    statuses: Counter[str] = field(default_factory=Counter)
    latencies_s: dict[str, list[float]] = field(default_factory=dict)

    @property
    def num_answers(self) -> int:
        """Number of answers of any status."""
        return self.statuses.total()

    def latency_s(self, quantile: float, status: str) -> float:
        """Return a quantile of the latencies of one status."""
        ordered = sorted(self.latencies_s[status])
        return ordered[min(len(ordered) - 1, int(quantile * len(ordered)))]

    def note(self, status: str, seconds: float) -> None:
        """Count one answer."""
        self.statuses[status] += 1
        self.latencies_s.setdefault(status, []).append(seconds)


class RestConnection(asyncio.Protocol):
    """One HTTP/1.1 keep-alive connection with one request at a time."""

    def __init__(self) -> None:
        self._answer: asyncio.Future[str] | None = None
        self._transport: asyncio.Transport
        self._buffer = bytearray()
        self.is_closed = False

    @classmethod
    async def open(cls, port: int) -> "RestConnection":
        """Connect to loopback."""
        loop = asyncio.get_running_loop()
        _, protocol = await loop.create_connection(cls, "127.0.0.1", port)
        return protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Collect the answer; the service always sends Content-Length."""
        self._buffer += data
        end = self._buffer.find(HEAD_END)
        if end < 0:
            return
        head = bytes(self._buffer[:end]).lower()
        start = head.index(LENGTH) + len(LENGTH)
        length = int(head[start:].split(b"\r\n", 1)[0])
        if len(self._buffer) < end + len(HEAD_END) + length:
            return
        self._buffer.clear()
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(head.split(b" ", 2)[1].decode())

    def connection_lost(self, error: Exception | None) -> None:
        """Fail the pending request."""
        self.is_closed = True
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error or ConnectionResetError("closed before the answer"))

    async def ask(self, request: bytes) -> str:
        """Send one raw request and wait for the status of the answer.

        Raises:
            ConnectionError: The connection closed first.
        """
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        async with asyncio.timeout(ANSWER_LIMIT_S):
            return await self._answer

    def close(self) -> None:
        """Hang up."""
        self._transport.abort()


def photo_like_jpeg(seed: int) -> bytes:
    """Return a 640 x 480 JPEG with smooth content like a photo."""
    noise = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def rest_request(target: str, body: bytes) -> bytes:
    """Return the bytes of a POST request with a JPEG."""
    head = f"POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def send(asks: Sequence[Ask], *, seconds: float | None = None, total: int = 0) -> Load:
    """Run all clients in a loop, for a duration or a total number of requests."""
    load, counter = Load(), iter(range(total) if seconds is None else iter(int, 1))
    sent = 0
    started = time.perf_counter()
    until = started + (seconds or 0.0)

    async def client(ask: Ask) -> None:
        nonlocal sent
        for _ in counter:
            begun = time.perf_counter()
            if seconds is not None and begun >= until:
                return
            sent += 1
            status = await ask(sent)
            load.note(status, time.perf_counter() - begun)

    await asyncio.gather(*map(client, asks))
    load.wall_s = time.perf_counter() - started
    return load


async def rest_clients(port: int, request: bytes, num_clients: int) -> list[Ask]:
    """Return clients that each send this request over their own connection."""

    def client(connection: RestConnection) -> Ask:
        async def ask(_number: int) -> str:
            nonlocal connection
            if connection.is_closed:  # closed by the server's keep-alive timeout
                connection = await RestConnection.open(port)
            return await connection.ask(request)

        return ask

    return [client(await RestConnection.open(port)) for _ in range(num_clients)]
