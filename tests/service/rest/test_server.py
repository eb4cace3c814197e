"""The HTTP server by raw sockets: slow and greedy clients, and closing the listening socket."""

import asyncio
import errno
import json
import select
import socket
import ssl
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from itertools import product, repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trustme
import uvloop
from fastapi import Request

from service.rest import inputs
from service.rest import server as rest_server
from service.rest.inputs import read_body
from service.rest.server import (
    BoundedProtocol,
    CountedTransport,
    Listener,
    ReadRate,
    accept_waiting,
    drop_new_connections,
    listen,
    num_waiting,
)
from service.server import Server
from tests.service.conftest import Encode, Entered, FakeRuntime, Serving, until

Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]

LIMIT_S = 20.0
CLOSED = 7  # TCP_CLOSE in Linux
SMALL: dict[str, Any] = {"client_timeout_s": 0.3, "keep_alive_s": 0.3}
LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = b"POST /v1/images:embed HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"


@asynccontextmanager
async def connected(server: Server, host: str = "127.0.0.1") -> AsyncIterator[Pair]:
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", server.ports["http"], local_addr=(host, 0)
    )
    try:
        yield reader, writer
    finally:
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)


async def read_all(reader: asyncio.StreamReader) -> bytes:
    """Everything until the server closes; a reset counts as closing."""
    got = b""
    async with asyncio.timeout(LIMIT_S):
        try:
            while data := await reader.read(65536):
                got += data
        except ConnectionError:
            pass
    return got


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, Any]]:
    """One answer with a length, as status and JSON."""
    async with asyncio.timeout(LIMIT_S):
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        return int(head.split()[1]), json.loads(await reader.readexactly(length))


@pytest.mark.parametrize("piece_bytes", [7, 1_000_000])
async def test_an_upgrade_request_is_answered_as_plain_http(
    serving: Serving, encode_image: Encode, piece_bytes: int
) -> None:
    image = encode_image()
    wish = POST + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: %b\r\n"
    measured = wish % b"h2c" + b"Content-Length: %d\r\n\r\n" % len(image) + image
    chunks = b"%x\r\n" % len(image) + image + b"\r\n0\r\n\r\n"
    chunked = wish % b"websocket" + b"Transfer-Encoding: chunked\r\n\r\n" + chunks
    hidden = wish % b"h2c" + b"Content-Length: %d\r\n\r\n" % len(LIVE) + LIVE
    closing = LIVE[:-2] + b"Upgrade: h2c\r\nConnection: close, Upgrade\r\n\r\n"
    sent = measured + LIVE + chunked + hidden + LIVE.replace(b"live", b"no") + closing
    async with serving() as server, connected(server) as (reader, writer):
        for begin in range(0, len(sent), piece_bytes):
            writer.write(sent[begin : begin + piece_bytes])
            await writer.drain()
            await asyncio.sleep(0)
        statuses = [(await read_answer(reader))[0] for _ in range(6)]
    assert statuses == [200, 200, 200, 422, 404, 200]


async def test_a_body_in_one_part_is_not_copied(
    serving: Serving, encode_image: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts: list[bytes] = []
    bodies: list[bytes] = []
    on_body = BoundedProtocol.on_body

    def keep(connection: BoundedProtocol, body: bytes) -> None:
        parts.append(body)
        on_body(connection, body)
        cycle: Any = connection.cycle
        assert cycle.body is body or isinstance(cycle.body, bytearray)

    async def read(request: Request) -> bytes:
        bodies.append(await read_body(request))
        return bodies[-1]

    monkeypatch.setattr(BoundedProtocol, "on_body", keep)
    monkeypatch.setattr(inputs, "read_body", read)
    image = encode_image()
    whole = POST + b"Content-Length: %d\r\n\r\n" % len(image) + image
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in image) + b"0\r\n\r\n"
    async with serving() as server, connected(server) as (reader, writer):
        writer.write(whole + POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunks)
        assert [(await read_answer(reader))[0] for _ in range(2)] == [200, 200]
    assert bodies == [image, image]
    assert bodies[0] is parts[0]


def sample(server: Server, name: str, **labels: str) -> float:
    return server.metrics.registry.get_sample_value(f"tipserve_{name}", labels) or 0.0


def state_of(connection: socket.socket) -> int:
    """The kernel's state of a connection."""
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


def code_of(answer: bytes) -> str:
    return str(json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"])


@asynccontextmanager
async def trickling(writer: asyncio.StreamWriter, pieces: Iterable[bytes]) -> AsyncIterator[None]:
    """Send pieces slowly until the block ends."""

    async def trickle() -> None:
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(0.01)

    sending = asyncio.ensure_future(trickle())
    yield
    sending.cancel()


@pytest.mark.parametrize("first", [b"", b"\r\n", LIVE])
@pytest.mark.parametrize("later", [b"", b"\r\n"], ids=["silence", "empty lines"])
async def test_a_connection_without_a_request_is_closed(
    serving: Serving, first: bytes, later: bytes
) -> None:
    async with serving(**SMALL) as server, connected(server) as (reader, writer):
        writer.write(first)
        async with trickling(writer, repeat(later)):
            answer = await read_all(reader)
    assert answer.count(b"HTTP/1.1") == (1 if first == LIVE else 0)


@pytest.mark.parametrize("before", [b"", LIVE])
async def test_a_slow_head_is_refused(serving: Serving, before: bytes) -> None:
    head = b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000
    async with serving(**SMALL) as server, connected(server) as (reader, writer):
        writer.write(before)
        if before:
            assert (await read_answer(reader))[0] == 200
        async with trickling(writer, (bytes([byte]) for byte in head)):
            answer = await read_all(reader)
    assert answer.startswith(b"HTTP/1.1 408")
    assert code_of(answer) == "request_timeout"


TUNNEL = b"CONNECT other.example:443 HTTP/1.1\r\nHost: localhost\r\n\r\n"
ENDLESS_HEAD = b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 20_000
LARGE_HEAD = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nX: %b\r\n\r\n" % (b"y" * 120_000)
STOPPED_BODY = POST + b"Content-Length: 1000\r\n\r\nsome"


@pytest.mark.parametrize(
    ("sent", "settings", "status", "code"),
    [
        pytest.param(TUNNEL, {}, 400, "malformed_http", id="tunnel"),
        pytest.param(ENDLESS_HEAD, {}, 431, "head_too_large", id="endless head"),
        pytest.param(LARGE_HEAD, {}, 431, "head_too_large", id="large head in one read"),
        pytest.param(b"\x16\x03\x01 secret\r\n\r\n", {}, 400, "malformed_http", id="malformed"),
        pytest.param(STOPPED_BODY, SMALL, 408, "request_timeout", id="stopped body"),
    ],
)
async def test_a_malformed_request_is_refused_in_our_error_body(
    serving: Serving, sent: bytes, settings: dict[str, Any], status: int, code: str
) -> None:
    async with serving(**settings) as server, connected(server) as (reader, writer):
        writer.write(sent)
        answer = await read_all(reader)
        await until(lambda: server.protection.body_memory.num_bytes == 0)
    assert answer.startswith(b"HTTP/1.1 %d" % status)
    assert code_of(answer) == code


@pytest.mark.parametrize("key", ["", "k" * 16])
async def test_endless_trailers_end_the_connection(serving: Serving, key: str) -> None:
    settings = {"api_keys": key} if key else {}
    async with serving(**settings) as server, connected(server) as (reader, writer):
        writer.write(POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n")
        writer.write(b"a:b\r\n" * 3000)
        answer = await read_all(reader)
        await until(lambda: not server._http.server_state.connections)
    assert answer.count(b"HTTP/1.1") <= 1


async def test_a_trailer_is_dropped(serving: Serving, encode_image: Encode) -> None:
    image = encode_image()
    chunks = b"%x\r\n" % len(image) + image + b"\r\n0\r\nX-Request-Timeout-Ms: 0\r\n\r\n"
    async with serving() as server, connected(server) as (reader, writer):
        writer.write(POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + LIVE)
        assert [(await read_answer(reader))[0] for _ in range(2)] == [200, 200]


@pytest.mark.parametrize(("num_requests", "is_served"), [(60, True), (3000, False)])
async def test_the_requests_that_wait_on_a_connection_are_bounded(
    serving: Serving, num_requests: int, is_served: bool
) -> None:
    async with serving() as server, connected(server) as (reader, writer):
        writer.write(LIVE * num_requests)
        if is_served:
            statuses = {(await read_answer(reader))[0] for _ in range(num_requests)}
            assert statuses == {200}
        else:
            assert (await read_all(reader)).count(b"HTTP/1.1 200") <= num_requests // 10


async def test_a_connection_whose_body_is_refused_is_closed(serving: Serving) -> None:
    async with serving(**SMALL) as server, connected(server) as (reader, writer):
        writer.write(POST + b"Content-Length: 1000000000000\r\n\r\n")
        async with trickling(writer, repeat(b"x" * 1000)):
            answer = await read_all(reader)
    assert answer.startswith(b"HTTP/1.1 413")


def large_answer(encode_image: Encode) -> bytes:
    """A request whose answer is far larger than what the sockets hold."""
    image = encode_image("PNG", size=(1200, 1200))
    path = b"/v1/images:segment?classes=dog,cat&include_scores=true&encoding=list"
    head = b"POST " + path + b" HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
    return head + b"Content-Length: %d\r\n\r\n" % len(image) + image


@asynccontextmanager
async def narrow(server: Server) -> AsyncIterator[socket.socket]:
    """A connection whose receive buffer is small, read by hand."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.setblocking(False)
        address = ("127.0.0.1", server.ports["http"])
        await asyncio.get_running_loop().sock_connect(connection, address)
        yield connection


async def test_an_unread_answer_is_dropped(serving: Serving, encode_image: Encode) -> None:
    async with serving(**SMALL) as server, narrow(server) as connection:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(connection, large_answer(encode_image))
        connections = server._http.server_state.connections
        await until(lambda: bool(connections))
        await until(lambda: not connections)
        # By a reset; otherwise the kernel would keep megabytes for this client.
        await until(lambda: state_of(connection) == CLOSED)


async def test_a_client_that_leaves_with_more_requests_sent_is_noticed(
    serving: Serving, runtime: FakeRuntime, encode_image: Encode, entered: Entered
) -> None:
    image = encode_image()
    post = POST + b"Content-Length: %d\r\n\r\n" % len(image) + image
    async with serving() as server:
        runtime.gate.clear()
        async with connected(server) as (_, writer):
            writer.write(post + LIVE)
            assert await entered()
        await until(lambda: server.gate.wait_idle(0.0))
        runtime.gate.set()


async def test_a_client_that_reads_at_the_minimum_rate_gets_everything(
    serving: Serving, encode_image: Encode
) -> None:
    # The time limit is longer than a busy machine delays this process.
    async with serving(client_timeout_s=1.0) as server, narrow(server) as connection:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(connection, large_answer(encode_image))
        got = await loop.sock_recv(connection, 65536)
        while b"\r\n\r\n" not in got:
            got += await loop.sock_recv(connection, 65536)
        head, _, body = got.partition(b"\r\n\r\n")
        missing = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]) - len(body)
        pauses = 30
        async with asyncio.timeout(LIMIT_S):
            while missing:
                data = await loop.sock_recv(connection, 65536)
                assert data, "the server closed"
                missing -= len(data)
                if pauses:
                    pauses -= 1
                    await asyncio.sleep(0.04)
    assert not pauses, "reading took longer than the timeout"


async def test_a_client_that_closes_its_sending_half_has_left(
    serving: Serving, encode_image: Encode, runtime: FakeRuntime, entered: Entered
) -> None:
    image = encode_image()
    async with serving() as server, connected(server) as (reader, writer):
        runtime.gate.clear()
        writer.write(POST + b"Content-Length: %d\r\n\r\n" % len(image) + image)
        assert await entered()
        writer.write_eof()
        assert await read_all(reader) == b""
        await until(lambda: server.protection.body_memory.num_bytes == 0)
        labels = {"protocol": "http", "method": "POST /v1/images:embed", "code": "499"}
        await until(lambda: sample(server, "requests_total", **labels) == 1)


async def test_a_new_connection_closes_the_longest_idle_one(serving: Serving) -> None:
    limits = {"max_connections": 2}
    async with serving(**limits) as server, connected(server) as first, connected(server) as second:
        for reader, writer in (first, second):
            writer.write(LIVE)
            assert (await read_answer(reader))[0] == 200
        async with connected(server) as (reader, writer):
            writer.write(LIVE)
            assert (await read_answer(reader))[0] == 200
            assert await read_all(first[0]) == b""
            second[1].write(LIVE)
            assert (await read_answer(second[0]))[0] == 200


async def test_a_new_connection_is_refused_if_all_are_busy(
    serving: Serving, encode_image: Encode, runtime: FakeRuntime, entered: Entered
) -> None:
    image = encode_image()
    async with serving(max_connections=1) as server, connected(server) as (busy, writer):
        runtime.gate.clear()
        writer.write(POST + b"Content-Length: %d\r\n\r\n" % len(image) + image)
        assert await entered()
        async with connected(server) as (reader, other):
            other.write(POST + b"Content-Length: 1\r\n\r\n")
            answer = await read_all(reader)
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"retry-after: 1" in answer
        assert code_of(answer) == "too_many_connections"
        assert sample(server, "rejected_total", reason="connections") == 1
        runtime.gate.set()
        assert (await read_answer(busy))[0] == 200


async def test_a_host_with_most_connections_makes_room_for_another(
    serving: Serving, encode_image: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rest_server, "CONTENDED_HOST_S", 0.0)
    image = encode_image()
    request = POST + b"Content-Length: %d\r\n\r\n" % len(image)
    async with serving(max_connections=4) as server, AsyncExitStack() as stack:
        connections: Any = server._http.server_state.connections
        hosts = ("127.0.0.3", "127.0.0.2", "127.0.0.2", "127.0.0.2")
        opened = []
        for number, host in enumerate(hosts, start=1):
            opened.append(await stack.enter_async_context(connected(server, host)))
            opened[-1][1].write(request)
            while [one._is_in_body for one in connections].count(True) < number:
                await asyncio.sleep(0.001)
        async with connected(server, "127.0.0.2") as (reader, other):
            other.write(request + image)
            assert code_of(await read_all(reader)) == "too_many_connections"
        async with connected(server, "127.0.0.4") as (reader, other):
            other.write(request + image)
            assert (await read_answer(reader))[0] == 200
            assert await read_all(opened[1][0]) == b"", "the oldest of the host with most"
        for reader, writer in (opened[0], *opened[2:]):
            writer.write(image)
            assert (await read_answer(reader))[0] == 200


@asynccontextmanager
async def refused(server: Server) -> AsyncIterator[asyncio.StreamReader]:
    """A connection whose refusal waits."""
    memory, connections = server.protection.body_memory, server._http._connections
    with memory.share() as share:
        share.hold(server.settings.max_body_memory_bytes)
        async with connected(server) as (reader, writer):
            writer.write(POST + b"Content-Length: 1\r\n\r\nx")
            await until(lambda: any(one.waits_to_refuse for one in connections()))
            yield reader


@pytest.mark.usefixtures("no_turns")
async def test_a_new_connection_sends_a_refusal_that_waits(serving: Serving) -> None:
    async with serving(max_connections=2) as server, connected(server) as (idle, writer):
        writer.write(LIVE)
        assert (await read_answer(idle))[0] == 200
        async with refused(server) as reader:
            async with connected(server) as (new, other):
                other.write(LIVE)
                assert (await read_answer(new))[0] == 200
                answer = await read_all(reader)
            assert answer.startswith(b"HTTP/1.1 429")
            assert b"retry-after: 1" in answer
            assert b"connection: close" in answer
            assert code_of(answer) == "body_memory_full"
        writer.write(LIVE)
        assert (await read_answer(idle))[0] == 200


@pytest.mark.usefixtures("no_turns")
async def test_a_drain_sends_refusals_that_wait(serving: Serving) -> None:
    async with serving() as server, refused(server) as reader:
        server.request_stop()
        assert (await read_all(reader)).startswith(b"HTTP/1.1 429")


OPEN_HEAD = b"POST /v1/images:embed HTTP/1.1\r\nHost: localhost\r\nX: "


async def test_a_new_connection_closes_the_oldest_unfinished_head(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = {"max_connections": 2}
    async with serving(**limits) as server, connected(server) as first, connected(server) as second:
        connections: Any = server._http.server_state.connections
        for number, (_, writer) in enumerate((first, second), start=1):
            writer.write(OPEN_HEAD)
            while [one._is_in_head for one in connections].count(True) < number:
                await asyncio.sleep(0.001)
        models = LIVE.replace(b"/v2/health/live", b"/v1/models")
        async with connected(server) as (reader, writer):
            writer.write(models)
            assert (await read_answer(reader))[0] == 503, "both heads are young"
        monkeypatch.setattr(rest_server, "CONTENDED_HEAD_S", 0.0)
        await until(lambda: not server._http._protocol.hosts_without_room)
        async with connected(server) as (reader, writer):
            writer.write(models)
            assert (await read_answer(reader))[0] == 200
            assert await read_all(first[0]) == b""
            second[1].write(b"y\r\nContent-Length: 0\r\nContent-Type: image/png\r\n\r\n")
            assert (await read_answer(second[0]))[0] == 422


async def test_health_is_answered_while_all_connections_send_open_heads(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rest_server, "SPARE_CONNECTIONS", 8)
    monkeypatch.setattr(rest_server, "CONTENDED_HEAD_S", LIMIT_S)
    async with serving(max_connections=4) as server, AsyncExitStack() as stack:
        opened = []
        for _ in range(30):
            opened.append(await stack.enter_async_context(connected(server)))
            opened[-1][1].write(OPEN_HEAD)
            await opened[-1][1].drain()
        for path in (b"live", b"ready", b"live?x=1"):
            async with connected(server) as (reader, writer):
                writer.write(LIVE.replace(b"live", path))
                answer = await read_all(reader)
            assert answer.count(b"HTTP/1.1 200") == 1, "and then the connection is closed"
        async with connected(server) as (reader, writer):
            writer.write(LIVE.replace(b"/v2/health/live", b"/ping"))
            assert (await read_all(reader)).startswith(b"HTTP/1.1 200")
        for head in (
            LIVE.replace(b"/v2/health/live", b"/v1/models"),
            LIVE.replace(b"GET", b"POST"),
        ):
            async with connected(server) as (reader, writer):
                writer.write(head)
                assert code_of(await read_all(reader)) == "too_many_connections"
        await until(lambda: len(server._http.server_state.connections) <= 4 + 8)
        opened[0][1].write(b"y\r\nContent-Length: 0\r\nContent-Type: image/png\r\n\r\n")
        status, _ = await read_answer(opened[0][0])
        assert status == 422, "the first connections are kept"


async def test_room_is_sought_once_for_the_connections_of_a_host(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    sought: list[str] = []

    def find_none(connections: object, host: str) -> bool:
        sought.append(host)
        return False

    monkeypatch.setattr(rest_server, "close_slowest", find_none)
    monkeypatch.setattr(rest_server, "CONTENDED_HEAD_S", LIMIT_S)
    monkeypatch.setattr(rest_server, "NO_ROOM_S", LIMIT_S)
    async with serving(max_connections=1) as server, connected(server) as (_, busy):
        busy.write(OPEN_HEAD)
        connections: Any = server._http.server_state.connections
        await until(lambda: any(one._is_in_head for one in connections))
        hosts = ["127.0.0.2"] * 3 + ["127.0.0.3"] * 2
        for host in hosts:
            async with connected(server, host) as (reader, writer):
                writer.write(POST + b"Content-Length: 1\r\n\r\n")
                assert code_of(await read_all(reader)) == "too_many_connections"
        assert sought == ["127.0.0.2", "127.0.0.3"]
        (protocol,) = {type(one) for one in connections}
        await until(lambda: not protocol.spares)
        protocol.hosts_without_room.clear()
        monkeypatch.setattr(rest_server, "NO_ROOM_S", 0.0)
        async with connected(server, "127.0.0.2"):
            await until(lambda: sought[2:] == ["127.0.0.2"])
        await until(lambda: not protocol.hosts_without_room)


async def test_connections_of_the_same_turn_do_not_close_a_probe(serving: Serving) -> None:
    async with serving(max_connections=8) as server, AsyncExitStack() as stack:
        for _ in range(7):
            _, writer = await stack.enter_async_context(connected(server))
            writer.write(OPEN_HEAD)
        connections: Any = server._http.server_state.connections
        await until(lambda: [one._is_in_head for one in connections].count(True) == 7)
        # Without a turn of the event loop in between, so that all are accepted before any is read.
        address = ("127.0.0.1", server.ports["http"])
        probe, *others = (socket.create_connection(address, LIMIT_S) for _ in range(12))
        with ExitStack() as sockets:
            for connection in (probe, *others):
                sockets.enter_context(connection)
                connection.sendall(LIVE if connection is probe else OPEN_HEAD)
            answer = await asyncio.to_thread(probe.recv, 4096)
        assert answer.startswith(b"HTTP/1.1 200")


NUM_UPLOADS = 1500


async def test_probes_answer_beside_more_slow_uploads_than_connections(
    serving: Serving, encode_image: Encode
) -> None:
    image = encode_image()
    upload = POST + b"Content-Length: 200000\r\n\r\n" + bytes(1000)
    request = POST + b"Content-Length: %d\r\n\r\n" % len(image) + image
    probes = [LIVE, LIVE.replace(b"live", b"ready")]

    async def probe(server: Server) -> set[bytes]:
        answers = set()
        for port, head in product(("http", "metrics"), probes):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.ports[port])
            writer.write(head)
            answers.add(
                (await read_all(reader) if port == "http" else await reader.read(65536))[:12]
            )
            writer.close()
        return answers

    async with serving(client_timeout_s=600.0) as server:
        writers = []
        for number in range(NUM_UPLOADS):
            _, writer = await asyncio.open_connection("127.0.0.1", server.ports["http"])
            writer.write(upload)
            writers.append(writer)
            if number >= server.protection.max_connections and number % 100 == 0:
                assert {answer[9:] for answer in await probe(server)} == {b"200"}
        async with connected(server) as (reader, honest):
            honest.write(request)
            assert code_of(await read_all(reader)) == "too_many_connections"
        assert {answer[9:] for answer in await probe(server)} == {b"200"}
        for writer in writers:
            writer.close()
        await until(lambda: not server._http.server_state.connections)
        async with connected(server) as (reader, honest):
            honest.write(request)
            assert (await read_answer(reader))[0] == 200


async def test_a_connection_beyond_the_limit_must_send_its_head_soon(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rest_server, "CONTENDED_HEAD_S", 0.1)
    async with serving(max_connections=1) as server, connected(server) as (_, writer):
        writer.write(POST + b"Content-Length: 1\r\n\r\n")
        await until(lambda: any(c._is_in_body for c in server._http._connections()))
        async with connected(server) as (silent, _), connected(server) as (slow, other):
            other.write(OPEN_HEAD)
            assert await read_all(silent) == b""
            assert code_of(await read_all(slow)) == "request_timeout"
        assert len(server._http.server_state.connections) == 1


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /v2/health/live HTTP/1.1\r\n\r\n", 400),
        (b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\nhost: b\r\n\r\n", 400),
        (b"GET /v2/health/live HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n", 400),
        (b"GET /v2/health/live HTTP/2.0\r\nHost: a\r\n\r\n", 400),
        (b"GET /v2/health/live\r\n\r\n", 400),
        (b"GET /v2/health/live HTTP/1.0\r\n\r\n", 200),
        (b"GET /v2/health/live HTTP/1.0\r\nHost: a\r\n\r\n", 200),
        (b"GET /v2/health/live HTTP/1.1\r\nHost: \r\nConnection: close\r\n\r\n", 200),
    ],
)
async def test_a_request_has_one_host(serving: Serving, head: bytes, status: int) -> None:
    async with serving() as server, connected(server) as (reader, writer):
        writer.write(head)
        answer = await read_all(reader)
    assert answer.startswith(b"HTTP/1.1 %d" % status)
    assert status == 200 or code_of(answer) == "malformed_http"


async def test_without_memory_a_body_is_refused_before_it_is_sent(
    serving: Serving, encode_image: Encode, runtime: FakeRuntime, entered: Entered
) -> None:
    image = encode_image("PNG", size=(60, 60))
    body = b"Content-Length: %d\r\n\r\n" % len(image) + image
    limits = {f"max_{name}_bytes": len(image) + 100 for name in ("image", "request", "body_memory")}
    async with serving(**limits) as server, connected(server) as (busy, writer):
        runtime.gate.clear()
        writer.write(POST + body)
        assert await entered()
        for kind in (b"Content-Length: 101\r\n", b"Transfer-Encoding: chunked\r\n"):
            async with connected(server) as (reader, other):
                other.write(POST + b"Expect: 100-continue\r\n" + kind + b"\r\n")
                if b"chunked" in kind:
                    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
                    other.write(b"65\r\n" + b"x" * 101 + b"\r\n")
                status, answer = await read_answer(reader)
                assert (status, answer["error"]["code"]) == (429, "body_memory_full")
        runtime.gate.set()
        assert (await read_answer(busy))[0] == 200
        await until(lambda: server.protection.body_memory.num_bytes == 0)
        writer.write(POST + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(image))
        assert await busy.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(image)
        assert (await read_answer(busy))[0] == 200


@pytest.mark.parametrize("is_refilled", [False, True])
@pytest.mark.parametrize(("bytes_per_s", "is_too_slow"), [(50, True), (120, False)])
def test_a_client_that_reads_in_bursts_is_judged_by_its_average_rate(
    bytes_per_s: int, is_too_slow: bool, is_refilled: bool
) -> None:
    unread = written = 100_000
    rate = ReadRate(100, 0.0)
    rate.behind_s(unread, written, 0.0)
    worst_s = 0.0
    for second in range(1, 61):
        if second % 4 == 0:  # four seconds' worth at once, then nothing
            if is_refilled:  # the next piece of the answer follows
                written += 4 * bytes_per_s
            else:
                unread -= 4 * bytes_per_s
        worst_s = max(worst_s, rate.behind_s(unread, written, float(second)))
    assert (worst_s > 5.0) is is_too_slow


async def test_a_slow_reader_is_dropped_once_others_wait_for_the_memory_of_answers(
    serving: Serving, encode_image: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rest_server, "CONTENDED_LIMIT_S", 0.3)
    ask = large_answer(encode_image)
    image_bytes = 1200 * 1200
    limits = {"client_timeout_s": 2.0, "max_work_memory_bytes": 40 * image_bytes}
    async with serving(**limits) as server, narrow(server) as slow:
        memory = server.plane.work_memory
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(slow, ask)
        await until(lambda: memory.num_bytes > 20 * image_bytes)  # not twice

        async def trickle() -> None:
            while await loop.sock_recv(slow, 16_384):
                await asyncio.sleep(0.05)

        reading = asyncio.ensure_future(trickle())
        await asyncio.sleep(3.0)  # faster than the minimum, so it may go on
        assert not reading.done()
        async with narrow(server) as other, asyncio.timeout(LIMIT_S):
            await loop.sock_sendall(other, ask)
            assert (await loop.sock_recv(other, 15)).startswith(b"HTTP/1.1 200")
            with pytest.raises(ConnectionError):
                await reading


@pytest.fixture(params=["127.0.0.1", "::1"])
def listening(request: pytest.FixtureRequest) -> socket.socket:
    try:
        return listen(request.param, 0)
    except OSError as error:
        pytest.skip(f"no {request.param} here: {error}")


def test_new_connections_wait_and_are_refused_once_the_socket_closes(
    listening: socket.socket,
) -> None:
    drop_new_connections(listening)
    with socket.socket(listening.family) as client:
        client.setblocking(False)
        assert client.connect_ex(listening.getsockname()) == errno.EINPROGRESS
        assert select.select([], [client], [], 0.2)[1] == []
        assert num_waiting(listening) == 0
        listening.close()
        # Linux sends its SYN again after a second.
        assert select.select([], [client], [], LIMIT_S)[1] == [client]
        error = client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        assert error == errno.ECONNREFUSED


async def test_waiting_connections_are_accepted_and_served(listening: socket.socket) -> None:
    clients = [socket.create_connection(listening.getsockname()[:2], LIMIT_S) for _ in range(3)]
    async with asyncio.timeout(LIMIT_S):
        # A client sees its connection a moment before it is in the queue of the server.
        while num_waiting(listening) < len(clients):
            await asyncio.sleep(0)
    assert num_waiting(listening) == 3
    listening.setblocking(False)
    waiting = asyncio.ensure_future(accept_waiting(listening))
    loop = asyncio.get_running_loop()
    taken = [(await loop.sock_accept(listening))[0] for _ in clients]
    await asyncio.wait_for(waiting, LIMIT_S)
    assert num_waiting(listening) == 0
    listening.close()
    for client, server_side in zip(clients, taken, strict=True):
        with client, server_side:
            client.sendall(b"hello")
            server_side.setblocking(False)
            assert await loop.sock_recv(server_side, 5) == b"hello"


def test_many_connections_are_accepted_in_one_turn() -> None:
    num_clients = 3 * rest_server.MAX_ACCEPTED_PER_TURN
    made: list[asyncio.Protocol] = []

    class Noting(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            made.append(self)

    async def count_turns() -> int:
        num_turns = 0
        with listen("127.0.0.1", 0) as listening, ExitStack() as stack:
            address = listening.getsockname()
            for _ in range(num_clients):
                stack.enter_context(socket.create_connection(address, LIMIT_S))
            while num_waiting(listening) < num_clients:
                await asyncio.sleep(0)
            others: Any = {"protocol": Noting, "protection": None, "connections": list}
            listener = Listener(listening, None, **others)
            async with asyncio.timeout(LIMIT_S):
                while len(made) < num_clients:
                    num_turns += 1
                    await asyncio.sleep(0)
            listener.close()
        return num_turns

    # The loop of the server, which accepts one connection in a turn by itself.
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(count_turns()) < num_clients / 3


def test_the_kernel_takes_little_of_an_answer_that_is_not_read() -> None:
    num_taken = 0
    with listen("127.0.0.1", 0) as listening, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(listening.getsockname())
        with listening.accept()[0] as connection:
            connection.setblocking(False)
            with suppress(BlockingIOError):
                while True:
                    num_taken += connection.send(bytes(65536))
    assert num_taken < 2 * rest_server.MAX_UNSENT_BYTES


@pytest.fixture
def tls(tmp_path: Path) -> tuple[dict[str, Any], ssl.SSLContext]:
    """Settings of a server with TLS, and a context for its clients."""
    ca, paths = trustme.CA(), {"tls_cert": tmp_path / "tls.crt", "tls_key": tmp_path / "tls.key"}
    leaf = ca.issue_cert("127.0.0.1")
    leaf.cert_chain_pems[0].write_to_path(paths["tls_cert"])
    leaf.private_key_pem.write_to_path(paths["tls_key"])
    context = ssl.create_default_context()
    ca.configure_trust(context)
    return paths, context


@pytest.mark.parametrize("serves_first", [False, True], ids=["silent only", "beside an idle one"])
async def test_silent_tls_handshakes_count_as_connections(
    serving: Serving, tls: tuple[dict[str, Any], ssl.SSLContext], serves_first: bool
) -> None:
    paths, context = tls
    async with serving(**paths, max_connections=4, client_timeout_s=5.0) as server:
        port = server.ports["http"]

        async def connect() -> Pair:
            return await asyncio.open_connection("127.0.0.1", port, ssl=context)

        first = await connect() if serves_first else None
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(12)]
        closed = silent[:8]
        assert [await read_all(reader) for reader, _ in closed] == [b""] * len(closed)
        assert sample(server, "rejected_total", reason="connections") == len(closed)
        if first is not None:
            assert await read_all(first[0]) == b""
        reader, writer = await connect()
        writer.write(LIVE)
        assert (await read_answer(reader))[0] == 200
        for _, other in [*silent, (reader, writer)]:
            other.close()


async def test_a_silent_tls_handshake_is_closed_in_time(
    serving: Serving, tls: tuple[dict[str, Any], ssl.SSLContext]
) -> None:
    async with serving(**tls[0], **SMALL) as server, connected(server) as (reader, _):
        assert await read_all(reader) == b""


def test_a_head_is_sent_with_what_follows_it() -> None:
    sent: list[bytes] = []
    transport: Any = SimpleNamespace(write=sent.append, close=lambda: sent.append(b"closed"))
    counted = CountedTransport(transport)
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n"
    counted.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert sent == [b"HTTP/1.1 100 Continue\r\n\r\n"], "a client waits for it"
    sent.clear()
    counted.write(head)
    assert sent == []
    counted.write(b"{}")
    counted.write(b"more")
    assert sent == [head + b"{}", b"more"]
    assert counted.num_bytes == len(b"HTTP/1.1 100 Continue\r\n\r\n" + head) + len(b"{}more")
    sent.clear()
    counted.write(head)
    counted.flush()  # the answer to HEAD has no body
    counted.flush()
    counted.write(head)
    counted.close()
    assert sent == [head, head, b"closed"]
