"""Work of a caller who has left is not begun: on every route, over REST, gRPC and streams."""

import asyncio
import socket
import struct
import threading
from contextlib import suppress
from typing import Any

import grpc
import pytest

from service.call import Call
from service.data_plane import DataPlane
from service.grpc.interceptors import CallInterceptor
from service.images import ImagePreparer
from service.server import Server
from tests.hostile.wire import (
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    connected,
    frame,
    http2_head,
    opened,
)
from tests.service.callers import (
    ALL,
    DEADLINE,
    LIMIT_S,
    OK,
    ROUTES,
    Answer,
    Ask,
    ask_rest,
)
from tests.service.conftest import WAIT_S, Encode, Entered, FakeRuntime, Serving, sample, until

# Long enough for a request to be on its way into the queue by then, also on a busy machine.
SOON_S = 0.5
NUM_CLIENTS = 20
NUM_ROUNDS = 5
EVERY_ROUTE = pytest.mark.parametrize("route", ROUTES)
REASONS = pytest.mark.parametrize("reason", ["hangs up", "is late"])


def total(server: Server, name: str) -> float:
    """The sum of all series of a metric."""
    families = {family.name: family for family in server.metrics.registry.collect()}
    return sum(s.value for s in families[f"tipserve_{name}"].samples)


def occupy(server: Server, release: threading.Event) -> None:
    """Let the pool's only thread wait for an event; return once it does."""
    began = threading.Event()

    def wait() -> None:
        began.set()
        release.wait(LIMIT_S)

    server.pool.submit(wait)
    assert began.wait(LIMIT_S)


async def end(request: "asyncio.Future[Answer]", reason: str) -> None:
    """Hang up, or let the deadline pass."""
    if reason == "hangs up":
        request.cancel()
        with suppress(asyncio.CancelledError):
            await request
    else:
        assert (await request).status in DEADLINE


def send(server: Server, image: bytes) -> socket.socket:
    """Send a request without the event loop."""
    head = f"POST /v1/images:embed HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(image)}\r\n"
    connection = socket.create_connection(("127.0.0.1", server.ports["http"]))
    connection.sendall(f"{head}Content-Type: image/png\r\n\r\n".encode() + image)
    return connection


async def test_requests_are_not_begun_if_their_clients_have_left_before(
    serving: Serving,
    encode_image: Encode,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    begun: list[object] = []
    monkeypatch.setattr(DataPlane, "embed_images", lambda *given: begun.append(given))
    tasks: list[str] = []

    def count(loop: asyncio.AbstractEventLoop, coroutine: Any, **named: Any) -> Any:
        tasks.append(coroutine.__name__)
        return asyncio.Task(coroutine, loop=loop, **named)

    async with serving() as server:
        asyncio.get_running_loop().set_task_factory(count)
        # The event loop has not run since: it learns of each client and its end at once.
        for _ in range(NUM_CLIENTS):
            send(server, encode_image()).close()
        labels = {"protocol": "http", "method": "POST /v1/images:embed", "code": "499"}
        await until(lambda: sample(server.metrics, "requests_total", **labels) == NUM_CLIENTS)
        asyncio.get_running_loop().set_task_factory(None)
        assert total(server, "requests") == NUM_CLIENTS
    # uvicorn's task of each: no route, and no task that waits for the end of the connection.
    accepting = "_shake_hands"
    assert begun == []
    assert [name for name in tasks if name != accepting] == ["run_asgi"] * NUM_CLIENTS
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def cancel_rpcs_before_they_are_accepted(server: Server) -> None:
    """While the event loop is blocked, begin and cancel RPCs; return when all are accepted."""
    path = http2_head(b"/tipserve.v1.EncoderService/EmbedImages")
    release = threading.Event()
    loop = server._grpc._loop
    loop.call_soon_threadsafe(release.wait, LIMIT_S)
    with connected(server.ports["grpc"]) as peer:
        peer.sendall(PREFACE + frame(SETTINGS))
        for stream in range(1, 2 * NUM_CLIENTS, 2):
            cancelled = frame(RST_STREAM, struct.pack(">I", 8), stream=stream)
            peer.sendall(opened(stream, block=path) + cancelled)
        # The core's own threads answer this, after what came before.
        peer.sendall(frame(PING, b"all read"))
        with peer.makefile("rb") as answers:
            while b"all read" not in answers.read1():
                pass
        release.set()
        with grpc.insecure_channel(f"127.0.0.1:{server.ports['grpc']}") as channel:
            # The server accepts the RPCs of a method one after the other: this is the last.
            embed: Any = channel.unary_unary("/tipserve.v1.EncoderService/EmbedImages")
            with pytest.raises(grpc.RpcError):
                await asyncio.to_thread(embed, b"", timeout=LIMIT_S)


async def test_rpcs_are_not_begun_if_they_were_cancelled_before_they_were_accepted(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []
    begin = CallInterceptor._begin

    def count(interceptor: CallInterceptor, name: str, context: Any) -> Call:
        begun.append(name)
        return begin(interceptor, name, context)

    monkeypatch.setattr(CallInterceptor, "_begin", count)
    async with serving() as server:
        # The core's notices come by another thread: some late, and on a busy machine most.
        for _ in range(NUM_ROUNDS):
            begun.clear()
            await cancel_rpcs_before_they_are_accepted(server)
            if len(begun) <= NUM_CLIENTS // 2:
                return
    raise AssertionError(f"in each of {NUM_ROUNDS} rounds too many began, {len(begun)} in the last")


async def test_the_pool_begins_no_image_whose_client_has_left(
    serving: Serving, encode_image: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[object] = []
    monkeypatch.setattr(ImagePreparer, "measure", lambda *given, **named: begun.append(given))
    release = threading.Event()
    # The lane prepares ahead, so that it decodes nothing itself.
    async with serving(pool_threads=1, prepare_ahead=True) as server:
        occupy(server, release)
        connection = send(server, encode_image())
        await until(lambda: server.pool.num_waiting > 0)
        # Without an `await`: the event loop cannot notice it.
        connection.close()
        release.set()
        server.pool.submit(lambda: None).result(WAIT_S)
        assert begun == []
        await until(lambda: total(server, "abandoned") == 1)
        assert sample(server.metrics, "inflight") == 0


@pytest.mark.slow
@ALL
@EVERY_ROUTE
@REASONS
async def test_an_abandoned_request_in_the_queue_is_not_computed(
    serving: Serving,
    encode_image: Encode,
    runtime: FakeRuntime,
    entered: Entered,
    ask: Ask,
    route: str,
    reason: str,
) -> None:
    async with serving() as server:
        runtime.gate.clear()
        first = asyncio.ensure_future(ask(server, encode_image()))
        assert await entered()
        timeout_s = LIMIT_S if reason == "hangs up" else SOON_S
        leaving = asyncio.ensure_future(
            ask(server, encode_image(seed=1), route, timeout_s=timeout_s)
        )
        if reason == "hangs up":
            await until(lambda: total(server, "queue_depth") > 0)
        await end(leaving, reason)
        await until(lambda: total(server, "abandoned") > 0)
        await until(lambda: total(server, "queue_depth") == 0)
        await until(lambda: sample(server.metrics, "inflight") == 1)
        runtime.gate.set()
        assert (await first).status in OK
    assert (runtime.num_images, runtime.num_texts, runtime.num_maps) == (1, 0, 0)


@pytest.mark.slow
@ALL
@EVERY_ROUTE
@REASONS
async def test_an_abandoned_request_before_decoding_is_not_decoded(
    serving: Serving,
    encode_image: Encode,
    runtime: FakeRuntime,
    monkeypatch: pytest.MonkeyPatch,
    ask: Ask,
    route: str,
    reason: str,
) -> None:
    decoded: list[str] = []
    for name in ("measure", "prepare"):
        method = getattr(ImagePreparer, name)

        def record(*given: Any, method: Any = method, **named: Any) -> Any:
            decoded.append(method.__name__)
            return method(*given, **named)

        monkeypatch.setattr(ImagePreparer, name, record)
    release = threading.Event()
    # The lane prepares ahead, so that it decodes nothing itself.
    async with serving(pool_threads=1, prepare_ahead=True) as server:
        occupy(server, release)
        timeout_s = LIMIT_S if reason == "hangs up" else SOON_S
        leaving = asyncio.ensure_future(ask(server, encode_image(), route, timeout_s=timeout_s))
        if reason == "hangs up":
            await until(lambda: server.pool.num_waiting > 0)
        await end(leaving, reason)
        await until(lambda: total(server, "requests") == 1)
        assert sample(server.metrics, "inflight") == 0
        release.set()
        # Items of a JSON body are not known yet: the body itself waited to be read.
        is_body = ask is ask_rest and route in {"texts", "infer"}
        await until(lambda: is_body or total(server, "abandoned") > 0)
        await until(lambda: server.pool.num_waiting == 0)
    assert (runtime.num_images, runtime.num_texts, runtime.num_maps, decoded) == (0, 0, 0, [])
