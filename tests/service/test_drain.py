"""Drain: accepted requests are answered, new ones are refused, and nothing hangs."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from service.admission import ServerState
from service.grpc.generated import embed_pb2, image_pb2
from service.grpc.generated.encoder_service_pb2_grpc import EncoderServiceStub
from service.server import Server
from tests.service.callers import LIMIT_S, grpc_channel, http_client
from tests.service.conftest import Encode, Entered, FakeRuntime, Serving, until


async def post(client: httpx.AsyncClient, image: bytes) -> httpx.Response:
    headers = {"Content-Type": "image/png"}
    return await client.post("/v1/images:embed", content=image, headers=headers)


async def call(channel: Any, image: bytes) -> str:
    request = embed_pb2.EmbedImagesRequest(images=[image_pb2.Image(encoded=image)])
    try:
        await EncoderServiceStub(channel).EmbedImages(request, timeout=LIMIT_S)
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


async def health(channel: Any) -> int:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    return int((await stub.Check(health_pb2.HealthCheckRequest(), timeout=LIMIT_S)).status)


async def test_before_it_closes_the_server_is_not_ready_but_answers(
    serving: Serving, encode_image: Encode
) -> None:
    noticed = asyncio.Event()
    async with serving(drain_delay_s=7) as server, http_client(server) as client:
        delays: list[float] = []

        async def pause(seconds: float) -> None:
            delays.append(seconds)
            await noticed.wait()

        server.pause = pause
        assert "connection" not in (await post(client, encode_image())).headers
        async with grpc_channel(server) as channel:
            assert await health(channel) == 1
            server.request_stop()
            await until(lambda: bool(delays))
            assert delays == [7]
            assert (await client.get("/v2/health/ready")).status_code == 503
            assert (await client.get("/v2/health/live")).status_code == 200
            assert await health(channel) == 2
            for _ in range(2):
                answer = await post(client, encode_image())
                assert (answer.status_code, answer.headers["connection"]) == (200, "close")
                assert await call(channel, encode_image()) == "OK"
        noticed.set()


async def test_requests_in_flight_are_answered_and_new_connections_are_refused(
    serving: Serving,
    encode_image: Encode,
    runtime: FakeRuntime,
    entered: Entered,
) -> None:
    async with serving() as server, http_client(server) as client, grpc_channel(server) as channel:
        runtime.gate.clear()
        rest = asyncio.ensure_future(post(client, encode_image()))
        assert await entered()
        rpc = asyncio.ensure_future(call(channel, encode_image()))
        await until(lambda: server.admission.num_admitted == 2)
        server.request_stop()
        await until(lambda: server.admission.state is ServerState.STOPPING)
        await until(lambda: server._http_socket.fileno() == -1)
        async with http_client(server) as late:
            with pytest.raises(httpx.ConnectError):
                await post(late, encode_image())
        async with asyncio.timeout(LIMIT_S):
            while True:
                async with grpc_channel(server) as new_channel:
                    code = await call(new_channel, b"")
                if code == "UNAVAILABLE":
                    break
        assert not rest.done()
        assert not rpc.done()
        runtime.gate.set()
        answer = await rest
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")
        assert await rpc == "OK"
    assert runtime.is_closed


async def test_an_open_connection_serves_one_more_request_and_is_closed(
    serving: Serving,
    encode_image: Encode,
    runtime: FakeRuntime,
    entered: Entered,
) -> None:
    async with serving() as server, http_client(server) as client, http_client(server) as idle:
        for each in (client, idle):
            assert (await post(each, encode_image())).status_code == 200
        runtime.gate.clear()
        holding = asyncio.ensure_future(post(http_client(server), encode_image()))
        for _ in range(3):
            assert await entered()
        server.request_stop()
        await until(lambda: server.admission.state is ServerState.STOPPING)
        again = asyncio.ensure_future(post(client, encode_image()))
        await until(lambda: server.admission.num_admitted == 2)
        await until(lambda: len(server._http.server_state.connections) == 2)
        runtime.gate.set()
        assert (await again).status_code == (await holding).status_code == 200


async def test_requests_that_outlast_the_drain_are_unavailable(
    serving: Serving,
    encode_image: Encode,
    runtime: FakeRuntime,
    entered: Entered,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.models.registry.CLOSE_GRACE_S", 0.2)
    async with serving(drain_timeout_s=0.2) as server, grpc_channel(server) as channel:
        runtime.gate.clear()
        async with http_client(server) as client:
            rest = asyncio.ensure_future(post(client, encode_image()))
            assert await entered()
            rpc = asyncio.ensure_future(call(channel, encode_image()))
            await until(lambda: server.admission.num_admitted == 2)
            server.request_stop()
            assert (await rest).status_code == 503
            assert await rpc == "UNAVAILABLE"


async def test_an_open_watch_of_health_does_not_delay_the_drain(serving: Serving) -> None:
    async with serving() as server, grpc_channel(server) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest())
        seen = [(await watch.read()).status]
        server.request_stop()
        seen.append((await watch.read()).status)
        with pytest.raises(grpc.aio.AioRpcError):
            await watch.read()
        assert seen == [1, 2]


async def test_a_stop_while_a_model_is_loaded_ends_the_load(
    make_settings: Callable[..., Any],
) -> None:
    entered = threading.Event()

    def load(settings: object, metrics: object, source: Any) -> Any:
        entered.set()
        assert source.cancelled.wait(LIMIT_S)
        source.check()

    server = Server(make_settings(), load)
    running = asyncio.ensure_future(server.run())
    assert await asyncio.to_thread(entered.wait, LIMIT_S)
    server.request_stop()
    await running
    assert not server.ready.is_set()
