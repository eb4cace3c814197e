"""uvicorn with limits on slow clients, and a drain that loses no request.

This file alone depends on more than the documented interfaces of uvicorn, Python and TCP. Each row is
a promise of the server, what it needs, and a test that fails without it (tests/service/rest/
test_server.py, unless another file is named).

| Promise | Needs | Test |
| --- | --- | --- |
| A slow head gets 408, an endless one 431. | `on_message_begin`, `on_headers_complete` and `transport` of uvicorn's `HttpToolsProtocol` | test_a_slow_head_is_refused |
| Trailers are dropped, endless ones end the connection. | its `on_header` | test_endless_trailers_end_the_connection |
| Malformed HTTP gets our error body. | its `data_received`, `send_400_response` and `parser` | test_a_malformed_request_is_refused_in_our_error_body |
| A body that arrives in one part is not copied. | its `on_body`; `cycle.body` | test_a_body_in_one_part_is_not_copied |
| A request for another protocol (h2c, WebSocket) is answered as HTTP/1.1. | its `parser`, `headers` and `url` | test_an_upgrade_request_is_answered_as_plain_http |
| TLS handshakes count as connections, for at most `client_timeout_s`. | `startup` and `lifespan` of uvicorn's `Server` | test_silent_tls_handshakes_count_as_connections |
| Beside clients that connect again and again, a connection is accepted soon. | `startup` and `lifespan` of uvicorn's `Server` | test_many_connections_are_accepted_in_one_turn |
| The kernel takes little of an answer that is not read. | TCP_NOTSENT_LOWAT (Linux) | test_the_kernel_takes_little_of_an_answer_that_is_not_read |
| A client that reads too slowly is dropped, and its megabytes are freed. | TIOCOUTQ, SO_LINGER (Linux, TCP) | test_an_unread_answer_is_dropped |
| A client that leaves cancels its running request, also with more requests sent after it. | its `cycle` and its `message_event`, `scope` | test_a_client_that_leaves_with_more_requests_sent_is_noticed |
| The request of a client that has already left is not begun. | its `scope`; POLLRDHUP (Linux) | tests/service/test_abandoned.py |
| A new connection closes the longest idle one when all are taken. | its `connections` and `cycle` | test_a_new_connection_closes_the_longest_idle_one |
| Refusals that wait are sent when their connections are needed. | `cycle.scope`, `cycle.keep_alive` | test_a_new_connection_sends_a_refusal_that_waits |
| A new connection closes the oldest unfinished head when none is idle. | its `connections` | test_a_new_connection_closes_the_oldest_unfinished_head |
| Health is answered beyond the limit of connections. | its `url` and `parser` | test_health_is_answered_while_all_connections_send_open_heads |
| During a drain, responses carry `Connection: close`. | `cycle.keep_alive` | tests/service/test_drain.py |
| A connection that the kernel has accepted is served before the socket closes. | SO_ATTACH_FILTER, TCP_INFO (Linux) | test_waiting_connections_are_accepted_and_served |

uvicorn documents `Config(http=...)` for a protocol class, but not the members above. None of them has
an underscore; they exist in every version that pyproject.toml allows.
"""  # noqa: E501 - a table

import array
import asyncio
import ctypes
import fcntl
import http
import json
import logging
import math
import random
import select
import socket
import ssl
import struct
import sys
import termios
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, ClassVar, Final, cast

import httptools
import uvicorn
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.errors import ErrorKind
from service.rest.connection import CLIENT, CallMiddleware, ClientLink
from service.safety.protection import SPARE_CONNECTIONS, Protection
from service.safety.proxies import FORWARDED_FOR
from service.work_memory import CONTENDED_BYTES_PER_S, CONTENDED_LIMIT_S, WorkMemory

MAX_HEAD_BYTES: Final = 64 * 1024
MAX_TRAILER_BYTES: Final = 8 * 1024
# How a head begins that a body may follow, unlike `100 Continue`, and how it ends.
RESPONSE: Final = tuple(f"HTTP/1.1 {digit}".encode() for digit in range(2, 6))
HEAD_END: Final = b"\r\n\r\n"
# Requests of one connection that may wait for their answers. One read of 256 kB can contain 14,000
# heads, and all are parsed before the first is answered.
MAX_PIPELINED: Final = 64
RETRY_AFTER_S: Final = 1
FORWARDED_HEADER: Final = FORWARDED_FOR.encode("ascii")
# How long a head may take while all connections are taken.
CONTENDED_HEAD_S: Final = 2.0
# While all connections are taken: a host with most of them loses one that is at least so old and
# waits for its client, for a new one of another host.
CONTENDED_HOST_S: Final = 2.0
# How long no room is sought for a host for which there was none: to look at 1,024 connections took
# 0.9 of the 0.95 ms of a refusal, in which the event loop did nothing else.
NO_ROOM_S: Final = 0.05
# How long a connection is new.
NEW_S: Final = 1.0
# Value of SO_LINGER: linger for 0 s, so that closing resets the connection and drops its data.
RESET: Final = struct.pack("ii", 1, 0)

BACKLOG: Final = 2048
# Bytes of an answer that the kernel takes before it can send them. By default these are megabytes:
# 1,000 answers of 2 MB that are not read left the memory for answers and filled the kernel's.
MAX_UNSENT_BYTES: Final = 256 * 1024
# How long an idle connection stays usable after the listening socket has closed: a request may be
# on its way.
IDLE_LINGER_S: Final = 0.5
DRAIN_POLL_S: Final = 0.01
ACCEPT_PAUSE_S: Final = 0.1
MAX_ACCEPTED_PER_TURN: Final = 32
ACCEPT_LIMIT_S: Final = 1.0
ACCEPT_POLL_S: Final = 0.005
# A round trip, for handshakes that began before SYNs were dropped.
HANDSHAKE_S: Final = 0.05
# Linux's constant, which Python's socket module does not define.
SO_ATTACH_FILTER: Final = 26
# A classic BPF program on the TCP header that drops segments with SYN set and accepts all others.
# As (code, jump if true, jump if false, operand): load byte 13; test SYN; accept; drop.
DROP_SYN: Final = (
    (0x30, 0, 0, 13),
    (0x45, 1, 0, 0x02),
    (0x06, 0, 0, 0xFFFFFFFF),
    (0x06, 0, 0, 0),
)
# Offset of `tcpi_unacked` in Linux's struct tcp_info: of a listening socket, the connections that
# wait to be accepted.
NUM_WAITING_OFFSET: Final = 24


_phases: Final = random.Random()
logger = logging.getLogger(__name__)


def readable_by_pages(app: ASGIApp, origins: Collection[str]) -> ASGIApp:
    """Answer the preflights of web pages of these origins, and let them read the answers."""
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=sorted(origins),
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
        expose_headers=["Retry-After", "Server-Timing", "X-Request-Id"],
    )


class HttpServer(uvicorn.Server):
    """uvicorn without its signal handlers: `service.server` handles signals for both transports."""

    def __init__(
        self,
        app: CallMiddleware,
        protection: Protection,
        memory: WorkMemory,
        *,
        write_grace_s: int,
    ) -> None:
        class Protocol(BoundedProtocol):
            """The connections of this server."""

        Protocol.protection = protection
        Protocol.memory = memory
        Protocol.spares = set()
        Protocol.hosts_without_room = set()
        Protocol.health_paths = frozenset(path.encode("ascii") for path in app.health_paths)
        self._protocol = Protocol
        self._tls = protection.tls
        self._listeners: list[Listener] = []
        config = uvicorn.Config(
            readable_by_pages(app, protection.browsers.origins),
            http=Protocol,
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            ws="none",
            proxy_headers=False,
            timeout_keep_alive=math.ceil(protection.keep_alive_s),
            timeout_graceful_shutdown=write_grace_s,
        )
        super().__init__(config)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to accept connections, by listeners of our own."""
        await super().startup([])
        protocol = partial(
            self._protocol,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )
        context = None if self._tls is None else self._tls.http_context()
        self._listeners = [
            Listener(
                listening,
                context,
                protocol=protocol,
                protection=self._protocol.protection,
                connections=self._connections,
            )
            for listening in sockets or []
        ]

    def announce_drain(self) -> None:
        """Keep serving, but close each connection after its next response.

        Clients then send their next request elsewhere, instead of into a closing connection.
        """
        self._protocol.is_draining = True
        for connection in self._connections():
            connection.close_after_answer()

    async def drain(self, listening: socket.socket, limit_s: float) -> bool:
        """Accept no new connection, and wait until all connections have closed.

        Returns:
            False if some were still open when the time was over.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + limit_s
        await accept_waiting(listening)
        for listener in self._listeners:
            listener.close()
        listening.close()
        linger_until = min(until, loop.time() + IDLE_LINGER_S)
        # A connection that was just accepted is in the list only after one turn of the event loop.
        await asyncio.sleep(DRAIN_POLL_S)
        while loop.time() < until:
            connections = self._connections()
            handshakes = [task for one in self._listeners for task in one.handshakes]
            if not (connections or handshakes):
                return True
            if loop.time() >= linger_until:
                for handshake in handshakes:
                    handshake.cancel()
                for connection in connections:
                    connection.close_if_unused()
            await asyncio.sleep(DRAIN_POLL_S)
        return False

    def _connections(self) -> list["BoundedProtocol"]:
        known: Any = self.server_state.connections
        return [c for c in known if isinstance(c, BoundedProtocol)]


class BoundedProtocol(HttpToolsProtocol):
    """One connection, with time limits for heads, readers and idling.

    One timer checks each connection now and then; received data only updates its state. The limits
    of request bodies are in `service.rest.connection`, where their bytes are counted.
    """

    protection: ClassVar[Protection]
    memory: ClassVar[WorkMemory]
    health_paths: ClassVar[frozenset[bytes]]
    # Open connections beyond `max_connections`.
    spares: ClassVar[set["BoundedProtocol"]]
    # Hosts for which no connection could be closed, until that is forgotten.
    hosts_without_room: ClassVar[set[str]]
    # Set for all connections of a server at once.
    is_draining: ClassVar[bool] = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start to wait for the first head."""
        self._written = CountedTransport(transport)
        super().connection_made(cast("asyncio.Transport", self._written))
        # Of the caller; behind a trusted proxy, that of the last request.
        self.host = self.client[0] if self.client else ""
        self._has_left = half_closed_check(transport.get_extra_info("socket").fileno())
        limits = self.protection
        now = self.loop.time()
        self._unanswered: list[Any] = []
        self._is_in_head = False
        self._is_in_body = False
        # Beyond `max_connections`: its one request is answered if it is a health check.
        self._is_spare = False
        self._num_head_bytes = 0
        self._num_trailer_bytes = 0
        # When the connection is closed unless a head, or the rest of a body, has arrived by then.
        self._due = now + limits.client_timeout_s
        self._began = now
        self._rate = ReadRate(limits.client_bytes_per_s, now)
        self._contended_rate = ReadRate(CONTENDED_BYTES_PER_S, now)
        self._closing_since = now
        self._interval_s = min(limits.client_timeout_s / 4, limits.keep_alive_s / 4, 5.0)
        # Not the whole interval, so that a crowd is not checked, and dropped, in one turn.
        first_s = self._interval_s * _phases.random()
        self._timer = self.loop.call_later(first_s, self._check)
        if len(self.connections) > limits.max_connections:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer, and notify the running request."""
        self._timer.cancel()
        self.spares.discard(self)
        super().connection_lost(exc)
        # uvicorn notifies the last request only, but an earlier one may still run.
        for cycle in self._unanswered:
            cycle.disconnected = True
            cycle.message_event.set()
            cycle.scope[CLIENT].on_left()
        self._unanswered.clear()

    def data_received(self, data: bytes) -> None:
        """Parse data; refuse malformed HTTP and an endless head."""
        try:
            self._parse(data)
        except httptools.HttpParserError:
            if self.transport.is_closing():
                return
            self.logger.warning("Invalid HTTP request received.")
            self.send_400_response("")
        if self._is_in_head:
            self._num_head_bytes += len(data)
            if self._num_head_bytes > MAX_HEAD_BYTES:
                self._refuse_head()

    def on_message_begin(self) -> None:
        """A head begins."""
        if len(self._unanswered) >= (1 if self._is_spare else MAX_PIPELINED):
            self.transport.close()
            raise ConnectionAbortedError("too many requests without an answer")
        super().on_message_begin()
        self._is_in_head = True
        self._num_head_bytes = 0
        if not self._is_spare:
            self._due = self.loop.time() + self.protection.client_timeout_s

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header; drop a trailer, since no request uses one."""
        if not self._is_in_body:
            super().on_header(name, value)
            return
        self._num_trailer_bytes += len(name) + len(value) + len(b": \r\n")
        if self._num_trailer_bytes > MAX_TRAILER_BYTES:
            self.transport.close()
            raise ConnectionAbortedError("the trailers are too large")

    def on_headers_complete(self) -> None:
        """A head is complete."""
        if self._asks_for_upgrade:
            return
        self._check_head()
        self._is_in_head = False
        self._is_in_body = True
        self._num_trailer_bytes = 0
        super().on_headers_complete()
        scope: Any = self.scope
        cycle: Any = self.cycle
        cycle.body = b""
        scope[CLIENT] = ClientLink(self._has_left, cycle.message_event.is_set)
        self._note_caller(scope)
        self._unanswered.append(cycle)
        if self.is_draining or self._is_spare:
            self.close_after_answer()

    def _note_caller(self, scope: Any) -> None:
        peer = self.client[0] if self.client else ""
        forwarded = (v.decode("latin-1") for n, v in self.headers if n == FORWARDED_HEADER)
        self.host = self.protection.proxies.host_of(peer, forwarded)
        if self.host != peer:
            scope["client"] = (self.host, 0)

    def on_body(self, body: bytes) -> None:
        """Take a part of a body; a body that arrives in one part is not copied.

        uvicorn adds each part to `cycle.body`, and hands over `bytes` of that. Of its own
        `bytearray` these are two copies.
        """
        cycle: Any = self.cycle
        if cycle.body and isinstance(cycle.body, bytes):
            cycle.body = bytearray(cycle.body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A body is complete."""
        if not self._is_in_body:  # the head asks for an upgrade
            return
        self._is_in_body = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Wait for the rest of an unread body, or for the next request."""
        self._written.flush()
        if self._unanswered:
            self._unanswered.pop(0)
        is_receiving = self._is_in_head or self._is_in_body
        limits = self.protection
        limit_s = limits.client_timeout_s if is_receiving else limits.keep_alive_s
        self._due = self.loop.time() + limit_s
        super().on_response_complete()
        if self.timeout_keep_alive_task is not None:
            # Our timer closes idle connections; uvicorn's would restart with every empty line.
            self.timeout_keep_alive_task.cancel()

    def send_400_response(self, msg: str) -> None:
        """Refuse malformed HTTP."""
        self._refuse(400, "This is not HTTP/1.1.", code="malformed_http")

    def close_after_answer(self) -> None:
        """Send `Connection: close` with the current response, unless its head is written."""
        if self._unanswered and not self.cycle.response_started:
            self.cycle.keep_alive = False

    def close_with_refusal(self) -> None:
        """Send a refusal that waits for its turn, and close."""
        client = self._unanswered[0].scope[CLIENT]
        send_refusal, client.send_refusal = client.send_refusal, None
        self.close_after_answer()
        send_refusal()

    def close_if_unused(self) -> None:
        """Close an idle connection, unless the kernel holds data of a request."""
        if self.waits_to_refuse:
            self.close_with_refusal()
        elif (
            self.is_idle
            and not self.transport.is_closing()
            and not num_received_bytes(self.transport)
        ):
            self.transport.close()

    @property
    def is_idle(self) -> bool:
        """Whether no request is being received or answered."""
        return not (self._unanswered or self._is_in_head or self._is_in_body)

    @property
    def waits_to_refuse(self) -> bool:
        """Whether its only request is refused, and the answer waits for its turn."""
        cycles = self._unanswered
        return len(cycles) == 1 and cycles[0].scope[CLIENT].send_refusal is not None

    @property
    def waits_for_client(self) -> bool:
        """Whether its client has long had bytes to send or to read."""
        age_s = self.loop.time() - self._began
        is_waiting = self._is_in_body or num_unread_bytes(self.transport) > 0
        return age_s > CONTENDED_HOST_S and is_waiting

    @property
    def is_new(self) -> bool:
        """Whether it has just been accepted: its request may be on its way."""
        return self.loop.time() - self._began < NEW_S

    @property
    def waits_for_head(self) -> bool:
        """Whether a head is unfinished for `CONTENDED_HEAD_S`, and no request is in progress."""
        head_s = self.loop.time() - self._due + self.protection.client_timeout_s
        return self._is_in_head and not self._unanswered and head_s > CONTENDED_HEAD_S

    def _check_head(self) -> None:
        version = self.parser.get_http_version()
        num_hosts, size = 0, len(self.url)
        for name, value in self.headers:
            num_hosts += name == b"host"
            size += len(name) + len(value) + len(b": \r\n")
        # RFC 9112, section 3.2: none or several are errors, and HTTP/1.0 may have none.
        if size > MAX_HEAD_BYTES:
            self._refuse_head()  # it came in one read: `data_received` has seen no part of it
        elif version not in {"1.0", "1.1"} or num_hosts > 1 or num_hosts < (version == "1.1"):
            self._refuse(400, "HTTP/1.1 needs exactly one Host header.", code="malformed_http")
        elif self._is_spare and not self._asks_for_health:
            self.protection.metrics.rejected.labels("connections").inc()
            self._refuse(
                503, "Too many connections are open; try again.", code="too_many_connections"
            )
        else:
            return
        raise ConnectionAbortedError("the head is refused")

    @property
    def _asks_for_health(self) -> bool:
        path = self.url.partition(b"?")[0]
        return bool(self.parser.get_method() == b"GET") and path in self.health_paths

    def _parse(self, data: bytes) -> None:
        """Feed data to the parser, and ignore requests for another protocol.

        Java's own client and `curl --http2` ask for h2c with every request. RFC 9110, section 7.8,
        lets a server ignore that. But httptools ends the request at its head then, as if the rest
        were of the other protocol; so it gets the same head again, without `Upgrade`.
        """
        rest = memoryview(data)
        while rest:
            try:
                self.parser.feed_data(rest)
            except httptools.HttpParserUpgrade as upgrade:
                if not self._asks_for_upgrade:  # CONNECT: the data after it cannot be parsed
                    return
                rest = rest[upgrade.args[0] :]
                head = self._head_without_upgrade()
                # With `Connection: close`, a parser that has seen the upgrade accepts no more data.
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
                self.parser.feed_data(head)
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

    def _check(self) -> None:
        """Close the connection if its client has been too slow."""
        now = self.loop.time()
        limit_s = self.protection.client_timeout_s
        num_unread = num_unread_bytes(self.transport)
        if num_unread or not self.transport.is_closing():
            self._closing_since = now
        num_written = self._written.num_bytes
        is_slow = self._rate.behind_s(num_unread, num_written, now) > limit_s
        behind_s = self._contended_rate.behind_s(num_unread, num_written, now)
        is_slow |= self.memory.is_contended and behind_s > CONTENDED_LIMIT_S
        # The second case: the client does not answer the end of TLS.
        if is_slow or now - self._closing_since > limit_s:
            # Without a reset, the kernel would keep offering the megabytes that it holds.
            peer = self.transport.get_extra_info("socket")
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self.transport.abort()
        elif not self._unanswered and now > self._due and not self.transport.is_closing():
            if self._is_in_head:
                self._refuse(
                    408, "The request's headers arrived too slowly.", code="request_timeout"
                )
            else:
                self.transport.close()
        self._timer = self.loop.call_later(self._interval_s, self._check)

    def _make_room(self) -> None:
        """Close another connection, or else keep this one for a health check alone.

        Probes must be answered although callers hold all connections: 1,060 open heads made the
        kubelet restart the pod.
        """
        if self.host not in self.hosts_without_room:
            others: Any = self.connections - {self}
            others = {c for c in others if not c.transport.is_closing()}
            if close_longest_idle(others) or close_slowest(others, self.host):
                self.protection.metrics.idle_connections_closed.labels("http").inc()
                return
            if not self.hosts_without_room:
                self.loop.call_later(NO_ROOM_S, self.hosts_without_room.clear)
            self.hosts_without_room.add(self.host)
        self._is_spare = True
        self._due = self.loop.time() + CONTENDED_HEAD_S
        self._interval_s = min(self._interval_s, CONTENDED_HEAD_S)
        self._timer.cancel()
        self._timer = self.loop.call_later(self._interval_s, self._check)
        spares = [c for c in self.spares if not c.transport.is_closing()]
        if len(spares) >= SPARE_CONNECTIONS:
            without_head = [c for c in spares if not c._unanswered]
            min(without_head, key=lambda c: c._due, default=self).transport.close()
        self.spares.add(self)

    def _refuse_head(self) -> None:
        self._refuse(431, "The request's headers are too large.", code="head_too_large")

    def _refuse(self, status: int, message: str, *, code: str) -> None:
        """Respond without the application, and close."""
        if self.transport.is_closing():
            return
        kind = ErrorKind.UNAVAILABLE if status == 503 else ErrorKind.INVALID
        error = {"message": message, "type": kind.value, "code": code, "param": None}
        body = json.dumps({"error": error}).encode()
        lines = [
            f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}",
            "content-type: application/json",
            f"content-length: {len(body)}",
            *([f"retry-after: {RETRY_AFTER_S}"] if status == 503 else []),
            "connection: close",
        ]
        self.transport.write("\r\n".join([*lines, "", ""]).encode() + body)
        self.transport.close()


class CountedTransport:
    """A transport that counts the bytes written to it, and sends a head with what follows it.

    uvicorn writes the head of a response and its body one after the other. Two segments of TCP cost
    both sides a system call more, and wake the client twice.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head = b""
        self.num_bytes = 0

    def write(self, data: bytes) -> None:
        """Write and count; a head waits for the next write, or for `flush`."""
        self.num_bytes += len(data)
        if not self._head and data.startswith(RESPONSE) and data.endswith(HEAD_END):
            self._head = data
            return
        if self._head:
            data, self._head = self._head + data, b""
        self._transport.write(data)

    def flush(self) -> None:
        """Write a head that nothing follows."""
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(head)

    def close(self) -> None:
        """Close, after what was written."""
        self.flush()
        self._transport.close()

    def is_closing(self) -> bool:
        """Whether it is closed or closes; uvicorn asks after every response."""
        return self._transport.is_closing()

    def __getattr__(self, name: str) -> Any:
        """Everything else is the transport's."""
        return getattr(self._transport, name)


def close_longest_idle(connections: Iterable[BoundedProtocol]) -> bool:
    """Close the connection that is idle longest, or else the one with the oldest unfinished head.

    Before them go refusals that wait: they are sent, so nothing is lost.

    1,060 unfinished heads without a key refused all other requests. A new connection is not idle
    yet, unless most are: many are accepted in one turn, before their requests can be read, and
    those that came after a probe closed it.

    Returns:
        False if there is none.
    """
    others = [c for c in connections if not (c._is_spare or c.transport.is_closing())]
    refused = [c for c in others if c.waits_to_refuse]
    if refused:
        min(refused, key=lambda connection: connection._due).close_with_refusal()
        return True
    idle = [c for c in others if c.is_idle]
    chosen = [c for c in idle if not c.is_new] or [c for c in others if c.waits_for_head]
    if not chosen and 2 * len(idle) > len(others):
        chosen = idle
    if chosen:
        min(chosen, key=lambda connection: connection._due).transport.close()
    return bool(chosen)


def close_slowest(connections: Iterable[BoundedProtocol], host: str) -> bool:
    """Close the oldest slow connection of the host that has more than half of them.

    1,024 bodies at the lowest rate refused all requests of other hosts for as long as they lasted.

    Returns:
        False if there is none, or if that is `host`, which asks for room.
    """
    others = [c for c in connections if not c._is_spare]
    hosts = Counter(c.host for c in others)
    most, num = hosts.most_common(1)[0] if hosts else (host, 0)
    if most == host or 2 * num <= len(others):
        return False
    slow = [c for c in others if c.host == most and c.waits_for_client]
    if slow:
        min(slow, key=lambda connection: connection._began).transport.abort()
    return bool(slow)


class Listener:
    """Accepts connections, many in one turn of the event loop, and shakes hands with TLS.

    uvloop's own server accepts one in each turn. Beside clients that connect again as soon as they
    are refused, a turn took 10 ms and a connection waited up to 1.2 s to be accepted.

    A TLS server of asyncio announces a connection only after its handshake: 6,000 silent ones were
    held for 60 s each, beside the limit of 1,024. Here a connection counts from its accept on. If
    all are taken, the longest idle one or the oldest handshake is closed.
    """

    def __init__(
        self,
        listening: socket.socket,
        context: ssl.SSLContext | None,
        *,
        protocol: Callable[[], BoundedProtocol],
        protection: Protection,
        connections: Callable[[], list[BoundedProtocol]],
    ) -> None:
        """Start to accept.

        Args:
            listening: The socket.
            context: Certificates; None accepts connections without TLS.
            protocol: Makes the protocol of a connection whose handshake is over.
            protection: Limits.
            connections: Returns the open connections whose handshake is over.
        """
        listening.setblocking(False)
        self._listening = listening
        self._context = context
        self._protocol = protocol
        self._protection = protection
        self._connections = connections
        # In progress, the oldest first; without TLS they end in the next turn.
        self.handshakes: dict[asyncio.Task[None], None] = {}
        self._accepting = asyncio.ensure_future(self._accept())

    def close(self) -> None:
        """Accept no more connections; handshakes in progress go on."""
        self._accepting.cancel()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        is_accepting = True
        while True:
            try:
                peer, _ = await loop.sock_accept(self._listening)
                is_accepting = True
                self._begin(peer)
                for _ in range(MAX_ACCEPTED_PER_TURN - 1):
                    self._begin(self._listening.accept()[0])
            except BlockingIOError:
                continue
            except OSError as error:
                # Without a descriptor the socket stays readable: without a pause this would spin.
                if is_accepting:
                    logger.error("REST cannot accept connections: %s", error.strerror)
                is_accepting = False
                await asyncio.sleep(ACCEPT_PAUSE_S)

    def _begin(self, peer: socket.socket) -> None:
        peer.setblocking(False)
        if self._context is not None:
            self._make_room()
        handshake = asyncio.ensure_future(self._shake_hands(peer))
        self.handshakes[handshake] = None
        handshake.add_done_callback(partial(self._end, peer))

    def _make_room(self) -> None:
        connections = self._connections()
        metrics = self._protection.metrics
        if len(connections) + len(self.handshakes) < self._protection.max_connections:
            return
        if close_longest_idle(connections):
            metrics.idle_connections_closed.labels("http").inc()
        elif self.handshakes:
            metrics.rejected.labels("connections").inc()
            oldest = next(iter(self.handshakes))
            del self.handshakes[oldest]
            oldest.cancel()

    async def _shake_hands(self, peer: socket.socket) -> None:
        limit_s = None if self._context is None else self._protection.client_timeout_s
        with suppress(OSError):  # errors of TLS and time-outs too; the connection is closed then
            await asyncio.get_running_loop().connect_accepted_socket(
                self._protocol, peer, ssl=self._context, ssl_handshake_timeout=limit_s
            )

    def _end(self, peer: socket.socket, handshake: "asyncio.Task[None]") -> None:
        self.handshakes.pop(handshake, None)
        if handshake.cancelled():  # perhaps before it began
            peer.close()


class ReadRate:
    """How far a client is behind the minimum rate of reading."""

    def __init__(self, bytes_per_s: int, now: float) -> None:
        self._bytes_per_s = bytes_per_s
        self._checked = now
        self._num_unread = 0
        self._num_written = 0
        self._behind_s = 0.0

    def behind_s(self, num_unread: int, num_written: int, now: float) -> float:
        """Seconds behind the rate; 0 if nothing is unread.

        Args:
            num_unread: Bytes written and not read yet.
            num_written: All bytes written so far.
            now: In seconds, later than in the last call.
        """
        before, self._num_unread = self._num_unread, num_unread
        written, self._num_written = num_written - self._num_written, num_written
        elapsed_s, self._checked = now - self._checked, now
        if not before or not num_unread:
            self._behind_s = 0.0
        else:
            # Summed over all checks, since the kernel takes data in bursts.
            read_s = max(0, before + written - num_unread) / self._bytes_per_s
            self._behind_s = max(0.0, self._behind_s + elapsed_s - read_s)
        return self._behind_s


def num_unread_bytes(transport: asyncio.Transport) -> int:
    """Bytes written that the peer has not acknowledged.

    Includes the kernel's buffer. It takes megabytes, and asks for more only when a third of them is
    sent, so without it a slow reader would look like one that does not read at all.
    """
    return transport.get_write_buffer_size() + _ioctl_int(transport, termios.TIOCOUTQ)


def num_received_bytes(transport: asyncio.Transport) -> int:
    """Bytes that the kernel has received and the event loop has not read yet."""
    return _ioctl_int(transport, termios.FIONREAD)


class _Polled(ctypes.Structure):
    """A `struct pollfd`."""

    _fields_: ClassVar = [
        ("fd", ctypes.c_int),
        ("events", ctypes.c_short),
        ("revents", ctypes.c_short),
    ]


# Not `select.poll`, which releases Python's lock for a call of less than 1 us: on a busy server
# another thread wakes up for it, twice in every request.
_LIBC: Final = ctypes.PyDLL(None)
_LIBC.poll.restype = ctypes.c_bool


def half_closed_check(descriptor: int) -> Callable[[], bool]:
    """Tells whether the peer has closed its side, also before the event loop has read that.

    From any thread. Once the connection is closed, the descriptor may be another's; but then the
    request has ended anyway.
    """
    return partial(_LIBC.poll, ctypes.byref(_Polled(descriptor, select.POLLRDHUP)), 1, 0)


def _ioctl_int(transport: asyncio.Transport, code: int) -> int:
    held = fcntl.ioctl(transport.get_extra_info("socket").fileno(), code, bytes(4))
    return int.from_bytes(held, sys.byteorder)


def listen(host: str, port: int, *, is_shared: bool = False) -> socket.socket:
    """A listening socket; port 0 lets the kernel choose.

    Args:
        host: Address to listen on.
        port: Port.
        is_shared: Whether other processes of this server have the port too. The kernel spreads
            connections over all sockets that listen, so this one does not, yet.

    Raises:
        OSError: The address is not available.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio disables Nagle's algorithm only if the protocol is named. With it, a small response
    # waits 40 ms for the client's delayed acknowledgement.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(is_shared))
        # Its connections inherit it.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, MAX_UNSENT_BYTES)
        listening.bind((host, port))
        if not is_shared:
            listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise OSError(
            f"REST cannot listen on {host}, port {port} ({error.strerror}); "
            "choose another with --http-port or --host"
        ) from error
    return listening


async def accept_waiting(listening: socket.socket) -> None:
    """Drop new connections, and wait up to a second until the server has accepted the others.

    Closing a listening socket resets the connections that the kernel has established and the server
    has not accepted yet; their requests would be lost.
    """
    drop_new_connections(listening)
    await asyncio.sleep(HANDSHAKE_S)
    loop = asyncio.get_running_loop()
    until = loop.time() + ACCEPT_LIMIT_S
    while num_waiting(listening) and loop.time() < until:
        await asyncio.sleep(ACCEPT_POLL_S)


def drop_new_connections(listening: socket.socket) -> None:
    """Ignore SYNs, so that clients retry and are refused once the socket is closed.

    Does nothing where the kernel has no socket filters.
    """
    program = array.array("B", b"".join(struct.pack("HBBI", *step) for step in DROP_SYN))
    address, _ = program.buffer_info()
    with suppress(OSError):
        listening.setsockopt(
            socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HL", len(DROP_SYN), address)
        )


def num_waiting(listening: socket.socket) -> int:
    """Connections that the kernel has established and the server has not accepted yet."""
    info = listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, NUM_WAITING_OFFSET + 4)
    return int(struct.unpack_from("I", info, NUM_WAITING_OFFSET)[0])
