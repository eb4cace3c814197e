"""uvicorn with our limits: the listening socket, the HTTP protocol, the drain."""

import asyncio
import ctypes
import fcntl
import json
import math
import socket
import struct
import sys
import termios
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import httptools
import uvicorn
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from service.errors import ErrorKind
from service.monitoring.metrics import Metrics
from service.rest.connection import CallMiddleware
from service.safety.protection import Protection

# The listening socket of REST, and how it is closed without dropping who is already there.
#
# Closing a listening socket resets the connections that the kernel has made and nobody has taken
# yet. So newcomers are turned away first, whoever is there is taken, and then it is closed.

BACKLOG: Final = 2048
TURN_AWAY_LIMIT_S: Final = 1.0
# For handshakes under way when newcomers were turned away: a round trip.
HANDSHAKE_S: Final = 0.05
POLL_S: Final = 0.005
# Linux's SO_ATTACH_FILTER, which Python's socket module does not name.
SO_ATTACH_FILTER: Final = 26
# A classic BPF program on the TCP header: drop what has SYN set, take all else. As (code, jump if
# true, jump if false, operand): load byte 13; SYN set?; take; drop.
NO_NEWCOMERS: Final = (
    (0x30, 0, 0, 13),
    (0x45, 1, 0, 0x02),
    (0x06, 0, 0, 0xFFFFFFFF),
    (0x06, 0, 0, 0),
)
# In struct tcp_info of a listening socket: connections that wait to be taken.
NUM_WAITING_OFFSET: Final = 24


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 is chosen freely.

    Raises:
        OSError: The address cannot be taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's algorithm off only where the protocol is named, and with it a small
    # answer waits 40 ms for the reader's delayed acknowledgement.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise OSError(
            f"REST cannot listen on {host}, port {port} ({error.strerror}); "
            "choose another by --http-port or --host"
        ) from error
    return listening


def turn_newcomers_away(listening: socket.socket) -> None:
    """Make no new connection: a caller's SYN is not heard, and once the socket is closed refused.

    Where the kernel has no socket filters, newcomers go on coming until the socket is closed.
    """
    program = b"".join(struct.pack("HBBI", *instruction) for instruction in NO_NEWCOMERS)
    buffer = ctypes.create_string_buffer(program)
    head = struct.pack("HL", len(NO_NEWCOMERS), ctypes.addressof(buffer))
    with suppress(OSError):
        listening.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, head)


def num_waiting(listening: socket.socket) -> int:
    """Connections that the kernel has made and nobody has taken yet."""
    info = listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, NUM_WAITING_OFFSET + 4)
    return int(struct.unpack_from("I", info, NUM_WAITING_OFFSET)[0])


async def wait_until_all_are_taken(listening: socket.socket) -> None:
    """Turn newcomers away and wait until the server has taken everybody else; at most a second."""
    turn_newcomers_away(listening)
    await asyncio.sleep(HANDSHAKE_S)
    loop = asyncio.get_running_loop()
    until = loop.time() + TURN_AWAY_LIMIT_S
    while num_waiting(listening) and loop.time() < until:
        await asyncio.sleep(POLL_S)


# uvicorn's connection with what it lacks: time limits for heads and readers, and for their number.
#
# Bodies are bounded in `body.py`, where their bytes are counted. One timer a connection looks now
# and then; nothing is done for each piece of data but to note where in a request the connection
# is.

MAX_HEAD_BYTES: Final = 64 * 1024
RETRY_AFTER_S: Final = 1
# Linger, for no time: the connection is reset, and what was not read is forgotten.
RESET: Final = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """What one connection may take.

    Attributes:
        max_connections: Open ones; beyond, the one that has been idle longest gives way.
        timeout_s: In which a head must have come; how long an answer may be read too slowly, and
            what is left of a body that was refused may go on coming.
        bytes_per_s: How fast an answer must be read on the whole.
        keep_alive_s: How long a connection may be idle between two requests.
        metrics: Counts the refused.
    """

    max_connections: int
    timeout_s: float
    bytes_per_s: int
    keep_alive_s: float
    metrics: Metrics


class BoundedProtocol(HttpToolsProtocol):
    """One connection. `limits` is set by `bounded_protocol`.

    With `is_leaving` set, for all connections of a server at once, each is closed after its answer.
    """

    limits: ClassVar[ConnectionLimits]
    is_leaving: ClassVar[bool] = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first head."""
        super().connection_made(transport)
        self._running: RequestResponseCycle | None = None
        self._is_in_head = False
        self._is_in_body = False
        self._num_head_bytes = 0
        # When the connection is closed unless a head, or the rest of a body, has come by then.
        self._due = self.loop.time() + self.limits.timeout_s
        self._unread_bytes = 0
        self._looked = self._said_since = self.loop.time()
        self._behind_s = 0.0
        self._interval_s = min(self.limits.timeout_s / 4, 5.0)
        self._timer = self.loop.call_later(self._interval_s, self._look)
        if len(self.connections) > self.limits.max_connections:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop looking, and tell the request that runs, behind which others may wait."""
        self._timer.cancel()
        super().connection_lost(exc)
        # uvicorn tells the request that came last.
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def data_received(self, data: bytes) -> None:
        """Take what came; a head without end is refused."""
        self._unset_keepalive_if_required()
        try:
            self._parse(data)
        except httptools.HttpParserError:
            self.logger.warning("Invalid HTTP request received.")
            self.send_400_response("")
        if self._is_in_head:
            self._num_head_bytes += len(data)
            if self._num_head_bytes > MAX_HEAD_BYTES:
                self._refuse(431, "head_too_large", "The request's headers are too large.")

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        self._is_in_head = True
        self._num_head_bytes = 0
        self._due = self.loop.time() + self.limits.timeout_s

    def on_headers_complete(self) -> None:
        """The head is here."""
        if self._asks_for_upgrade:
            return
        self._is_in_head = False
        self._is_in_body = True
        super().on_headers_complete()
        if self.is_leaving:
            self.close_after_answer()

    def on_message_complete(self) -> None:
        """The body is here."""
        if self._asks_for_upgrade:
            return
        self._is_in_body = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Wait for the rest of a body that nobody reads, or for the next request."""
        is_waiting = self._is_in_head or self._is_in_body
        idle_s = 0.0 if is_waiting else self.limits.keep_alive_s
        self._due = self.loop.time() + idle_s + self.limits.timeout_s
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP in the body that all errors share."""
        self._refuse(400, "malformed_http", "This is not HTTP/1.1.")

    def close_after_answer(self) -> None:
        """Say `Connection: close` in the answer under way, unless its head is written."""
        if not self._is_answered and not self.cycle.response_started:
            self.cycle.keep_alive = False

    def _parse(self, data: bytes) -> None:
        """Have the parser take what came.

        We speak no other protocol, and ignore a wish for one, such as h2c of Java's own client and
        of `curl --http2`. The parser ends the request at its head there, as if the body were of the
        other protocol already; so it is told the same head again, without the wish.
        """
        rest = memoryview(data)
        while rest:
            try:
                self.parser.feed_data(rest)
            except httptools.HttpParserUpgrade as upgrade:
                if not self._asks_for_upgrade:  # CONNECT: nobody knows what follows
                    return
                rest = rest[upgrade.args[0] :]
                self.parser.feed_data(self._head_without_upgrade())
            else:
                return

    @property
    def _asks_for_upgrade(self) -> bool:
        return bool(self.parser.should_upgrade()) and self.parser.get_method() != b"CONNECT"

    def _head_without_upgrade(self) -> bytes:
        version = self.parser.get_http_version().encode("ascii")
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)]
        lines += [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])

    @property
    def is_idle(self) -> bool:
        """Whether no request is on its way in or out."""
        return self._is_answered and not self._is_in_head and not self._is_in_body

    @property
    def _is_answered(self) -> bool:
        cycle: Any = self.cycle  # None before the first request, whatever its annotation says
        return cycle is None or bool(cycle.response_complete)

    def _look(self) -> None:
        """Close the connection where the peer has been too slow."""
        now = self.loop.time()
        if self._reads_too_slowly(now) or self._keeps_its_farewell(now):
            # Otherwise the kernel would go on offering what it holds, megabytes, without end.
            peer = self.transport.get_extra_info("socket")
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self.transport.abort()
        elif self._is_answered and now > self._due and not self.transport.is_closing():
            if self._is_in_head:
                self._refuse(408, "request_timeout", "The request's headers came too slowly.")
            else:
                self.transport.close()
        self._timer = self.loop.call_later(self._interval_s, self._look)

    def _reads_too_slowly(self, now: float) -> bool:
        """Whether the peer has taken too little, for too long, of what was written for it."""
        before, self._unread_bytes = self._unread_bytes, num_unread_bytes(self.transport)
        elapsed_s, self._looked = now - self._looked, now
        if not before or not self._unread_bytes:
            self._behind_s = 0.0
        else:
            # Over all looks together: the kernel takes in bursts, and none must pay for the rest.
            taken_s = max(0, before - self._unread_bytes) / self.limits.bytes_per_s
            self._behind_s = max(0.0, self._behind_s + elapsed_s - taken_s)
        return self._behind_s > self.limits.timeout_s

    def _keeps_its_farewell(self, now: float) -> bool:
        """Whether all is said and closed, and the peer does not answer TLS's last word."""
        if self._unread_bytes or not self.transport.is_closing():
            self._said_since = now
        return now - self._said_since > self.limits.timeout_s

    def _make_room(self) -> None:
        others: Iterable[Any] = self.connections - {self}
        idle = [c for c in others if c.is_idle and not c.transport.is_closing()]
        if idle:
            min(idle, key=lambda connection: connection._due).transport.close()
            return
        self.limits.metrics.rejected.labels("connections").inc()
        self._refuse(503, "too_many_connections", "Too many connections are open; try again.")

    def _refuse(self, status: int, code: str, message: str) -> None:
        """Answer without the application, and close."""
        if self.transport.is_closing():
            return
        kind = ErrorKind.UNAVAILABLE if status == 503 else ErrorKind.INVALID
        error = {"message": message, "type": kind.value, "code": code, "param": None}
        body = json.dumps({"error": error}).encode()
        retry = f"retry-after: {RETRY_AFTER_S}\r\n" if status == 503 else ""
        head = f"content-type: application/json\r\ncontent-length: {len(body)}\r\n{retry}"
        self.transport.write(
            STATUS_LINE[status] + head.encode() + b"connection: close\r\n\r\n" + body
        )
        self.transport.close()


def num_unread_bytes(transport: asyncio.Transport) -> int:
    """Bytes written that the peer has not acknowledged.

    The kernel's share must be counted: it takes megabytes, and asks for more only when a third of
    them is gone, so that a slow reader would look like one who does not read at all.
    """
    held = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
    return transport.get_write_buffer_size() + int.from_bytes(held, sys.byteorder)


def bounded_protocol(limits: ConnectionLimits) -> type[BoundedProtocol]:
    """The protocol with these limits, as uvicorn takes it."""

    class Protocol(BoundedProtocol):
        """Every connection of one server."""

    Protocol.limits = limits
    return Protocol


# uvicorn, and how it is left: no request that has reached it is dropped.
#
# From the goodbye on every answer carries `Connection: close`, so that callers go elsewhere with
# their next request instead of meeting a closing connection. Then nobody new is let in, and a
# connection that nobody has used since is closed last, when nothing waits in it.

# How long a connection that is idle may still be used once newcomers are turned away.
IDLE_LINGER_S: Final = 0.5
DRAIN_POLL_S: Final = 0.01


class HttpServer(uvicorn.Server):
    """uvicorn, with signals left to `Server`: uvicorn itself would end the process by them."""

    def __init__(self, app: CallMiddleware, protection: Protection, *, write_grace_s: int) -> None:
        self._protocol = bounded_protocol(connection_limits(protection))
        super().__init__(http_config(app, protection, self._protocol, write_grace_s))

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield

    def announce_drain(self) -> None:
        """Answer whatever comes, and close each connection after its next answer."""
        self._protocol.is_leaving = True
        for connection in self._connections():
            connection.close_after_answer()

    async def drain(self, listening: socket.socket, limit_s: float) -> bool:
        """Let nobody new in and wait until everybody has gone.

        Returns:
            False where some were still there when the time was over.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + limit_s
        await wait_until_all_are_taken(listening)
        for server in self.servers:
            server.close()
        listening.close()
        linger_until = min(until, loop.time() + IDLE_LINGER_S)
        # Once round the loop first: a connection just taken is not known before.
        await asyncio.sleep(DRAIN_POLL_S)
        while (there := self._connections()) and loop.time() < until:
            if loop.time() >= linger_until:
                close_idle(there)
            await asyncio.sleep(DRAIN_POLL_S)
        return not there

    def _connections(self) -> list[BoundedProtocol]:
        known: Any = self.server_state.connections
        return [c for c in known if isinstance(c, BoundedProtocol)]


def close_idle(connections: Iterable[BoundedProtocol]) -> None:
    """Close those that nobody uses, unless a request has come that was not read yet."""
    for connection in connections:
        transport = connection.transport
        if connection.is_idle and not transport.is_closing() and not num_waiting_bytes(transport):
            transport.close()


def num_waiting_bytes(transport: asyncio.Transport) -> int:
    """Bytes that the peer has sent and nobody has read."""
    held = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.FIONREAD, bytes(4))
    return int.from_bytes(held, sys.byteorder)


def connection_limits(protection: Protection) -> ConnectionLimits:
    """What the settings say of one connection."""
    return ConnectionLimits(
        max_connections=protection.max_connections,
        timeout_s=protection.client_timeout_s,
        bytes_per_s=protection.client_bytes_per_s,
        keep_alive_s=protection.keep_alive_s,
        metrics=protection.metrics,
    )


def http_config(
    app: CallMiddleware,
    protection: Protection,
    protocol: type[BoundedProtocol],
    write_grace_s: int,
) -> uvicorn.Config:
    """REST as uvicorn serves it."""
    tls = protection.tls
    return uvicorn.Config(
        app,
        http=protocol,
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        ws="none",
        proxy_headers=False,
        timeout_keep_alive=math.ceil(protection.keep_alive_s),
        timeout_graceful_shutdown=write_grace_s,
        ssl_context_factory=None if tls is None else lambda *_: tls.http_context(),
    )
