"""Drain: not ready first, then accepted requests are answered, and nothing hangs."""

import asyncio
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.service.callers import (
    LIMIT_S,
    UNAVAILABLE,
    ask_grpc,
    ask_rest,
    grpc_channel,
    http_client,
)
from tests.service.conftest import Encode, Entered, FakeRuntime, Serving, until


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
        assert "connection" not in (await ask_rest(server, encode_image())).headers
        async with grpc_channel(server) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            check = health_pb2.HealthCheckRequest()
            assert (await stub.Check(check, timeout=LIMIT_S)).status == 1
            server.request_stop()
            await until(lambda: bool(delays))
            assert delays == [7]
            for path in ("/v2/health/ready", "/health", "/healthz", "/ping"):
                assert (await client.get(path)).status_code == 503, path
            assert (await client.get("/v2/health/live")).status_code == 200
            assert (await stub.Check(check, timeout=LIMIT_S)).status == 2
        for _ in range(2):
            answer = await ask_rest(server, encode_image())
            assert (answer.status, answer.headers["connection"]) == ("200", "close")
            assert (await ask_grpc(server, encode_image())).status == "OK"
        noticed.set()


async def test_requests_that_outlast_the_drain_are_unavailable(
    serving: Serving,
    encode_image: Encode,
    runtime: FakeRuntime,
    entered: Entered,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.models.registry.CLOSE_GRACE_S", 0.2)
    async with serving(drain_timeout_s=0.2) as server:
        runtime.gate.clear()
        asked = [asyncio.ensure_future(ask(server, encode_image())) for ask in (ask_rest, ask_grpc)]
        assert await entered()
        await until(lambda: server.admission.num_admitted == 2)
        server.request_stop()
        assert {(await one).status for one in asked} == UNAVAILABLE


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
