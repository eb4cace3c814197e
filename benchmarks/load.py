"""Sends requests over kept-alive connections, so many at a time, and notes each answer.

The clients are as thin as can be: on a machine of few cores they share it with what they measure.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

HEAD_END = b"\r\n\r\n"
LENGTH = b"content-length:"
ANSWER_LIMIT_S = 120.0

# Sends one request and returns the answer's status; the argument counts the requests.
Ask = Callable[[int], Awaitable[str]]


@dataclass(slots=True)
class Load:
    """What came of many requests."""

    wall_s: float = 0.0
    statuses: Counter[str] = field(default_factory=Counter)
    latencies_s: dict[str, list[float]] = field(default_factory=dict)

    @property
    def num_answers(self) -> int:
        """Answers of any status."""
        return self.statuses.total()

    def latency_s(self, quantile: float, status: str) -> float:
        """A quantile of the latencies of one status."""
        ordered = sorted(self.latencies_s[status])
        return ordered[min(len(ordered) - 1, int(quantile * len(ordered)))]

    def note(self, status: str, seconds: float) -> None:
        """Count one answer."""
        self.statuses[status] += 1
        self.latencies_s.setdefault(status, []).append(seconds)


class RestConnection(asyncio.Protocol):
    """One HTTP/1.1 connection that is kept alive; one request at a time."""

    def __init__(self) -> None:
        self._answer: asyncio.Future[str] | None = None
        self._transport: asyncio.Transport
        self._buffer = bytearray()
        self.head = b""
        self.body = b""
        self.is_closed = False

    @classmethod
    async def open(cls, port: int) -> "RestConnection":
        """Connect to loopback."""
        loop = asyncio.get_running_loop()
        _, protocol = await loop.create_connection(cls, "127.0.0.1", port)
        return protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember where to write."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Wait for the whole answer; all of ours tell their length."""
        self._buffer += data
        end = self._buffer.find(HEAD_END)
        if end < 0:
            return
        head = bytes(self._buffer[:end]).lower()
        start = head.index(LENGTH) + len(LENGTH)
        length = int(head[start:].split(b"\r\n", 1)[0])
        if len(self._buffer) < end + len(HEAD_END) + length:
            return
        self.head, self.body = head, bytes(self._buffer[end + len(HEAD_END) :])
        self._buffer.clear()
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(head.split(b" ", 2)[1].decode())

    def connection_lost(self, error: Exception | None) -> None:
        """Whoever waits is told."""
        self.is_closed = True
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error or ConnectionResetError("closed before the answer"))

    async def ask(self, request: bytes) -> str:
        """Send one request as it stands, and wait for the status of its answer.

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


def rest_request(
    target: str, body: bytes, media: str = "image/jpeg", headers: Sequence[str] = ()
) -> bytes:
    """A POST as it goes over the wire."""
    lines = [
        f"POST {target} HTTP/1.1",
        "Host: localhost",
        f"Content-Type: {media}",
        f"Content-Length: {len(body)}",
        *headers,
    ]
    return "\r\n".join(lines).encode() + HEAD_END + body


async def send(asks: Sequence[Ask], *, seconds: float | None = None, total: int = 0) -> Load:
    """Let every client ask again and again, for so long or so many times altogether."""
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
    """Clients that send one request over connections of their own."""

    def client(connection: RestConnection) -> Ask:
        async def ask(_number: int) -> str:
            nonlocal connection
            if connection.is_closed:  # it was idle for too long
                connection = await RestConnection.open(port)
            return await connection.ask(request)

        return ask

    return [client(await RestConnection.open(port)) for _ in range(num_clients)]
