"""A device that dies or hangs under a whole server, as both protocols report it."""

import asyncio
import time

import httpx
import pytest
from grpc_health.v1 import health_pb2

from service import server as server_module
from service.monitoring.metrics import LAG_INTERVAL_S
from service.monitoring.metrics_server import LIVE
from service.server import Server
from tests.service.callers import (
    BOTH,
    INTERNAL,
    LIMIT_S,
    OK,
    UNAVAILABLE,
    Ask,
    call_rpc,
    http_client,
)
from tests.service.conftest import Encode, FakeRuntime, Serving


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, runtime: FakeRuntime) -> None:
    """Trial batches and checks follow at once."""
    monkeypatch.setattr(server_module, "HEALTH_INTERVAL_S", 0.05)
    runtime.trial_interval_s = 0.05


async def rest_status(server: Server, probe: str) -> int:
    async with http_client(server) as client:
        return (await client.get(f"/v2/health/{probe}")).status_code


async def grpc_status(server: Server, service: str) -> str:
    request = health_pb2.HealthCheckRequest(service=service).SerializeToString()
    answer = await call_rpc(server, "/grpc.health.v1.Health/Check", request)
    (raw,) = answer.messages
    status = health_pb2.HealthCheckResponse.FromString(raw).status
    return health_pb2.HealthCheckResponse.ServingStatus.Name(status)


async def until_ready(server: Server, is_ready: bool) -> None:
    """Wait until both protocols report this readiness, of the server and of its model."""
    async with asyncio.timeout(LIMIT_S):
        while (await rest_status(server, "ready") == 200) != is_ready:
            await asyncio.sleep(0.01)
        for service in ("", "fake"):
            while (await grpc_status(server, service) == "SERVING") != is_ready:
                await asyncio.sleep(0.01)


@BOTH
async def test_a_dead_device_ends_readiness_and_liveness(
    serving: Serving, encode_image: Encode, runtime: FakeRuntime, ask: Ask
) -> None:
    async with serving() as server:
        assert (await ask(server, encode_image())).status in OK
        assert await rest_status(server, "ready") == await rest_status(server, "live") == 200
        runtime.fault = "broken"
        assert (await ask(server, encode_image())).status in INTERNAL | UNAVAILABLE
        await until_ready(server, False)
        assert (await ask(server, encode_image())).status in UNAVAILABLE
        async with asyncio.timeout(LIMIT_S):
            while await rest_status(server, "live") != 503:
                await asyncio.sleep(0.01)


async def test_a_stalled_event_loop_fails_the_probes_of_the_metrics_port(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "LOOP_LIMIT_S", 1.0)

    def probe(port: int) -> int:
        return httpx.get(f"http://127.0.0.1:{port}{LIVE}", timeout=LIMIT_S).status_code

    async with serving() as server:
        port = server.ports["metrics"]
        assert await asyncio.to_thread(probe, port) == 200
        # Called on the event loop of REST, which stalls until the probe fails.
        until = time.monotonic() + LIMIT_S
        while (status := probe(port)) == 200 and time.monotonic() < until:
            pass
        assert status == 503
        await asyncio.sleep(LAG_INTERVAL_S)
        async with asyncio.timeout(LIMIT_S):
            while await asyncio.to_thread(probe, port) != 200:
                pass


@BOTH
async def test_a_device_that_recovers_is_used_again(
    serving: Serving, encode_image: Encode, runtime: FakeRuntime, ask: Ask
) -> None:
    runtime.retry_s = 2.0
    async with serving() as server:
        runtime.fault = "broken"
        asked = asyncio.ensure_future(ask(server, encode_image()))
        async with asyncio.timeout(LIMIT_S):
            while await rest_status(server, "ready") != 503:
                await asyncio.sleep(0.01)
        runtime.fault = ""
        # If the idle lane found the fault first, requests admitted before are still answered.
        assert (await asked).status in OK | INTERNAL | UNAVAILABLE
        await until_ready(server, True)
        assert (await ask(server, encode_image())).status in OK
        assert await rest_status(server, "live") == 200


@BOTH
async def test_a_hanging_device_ends_readiness_until_its_answer(
    serving: Serving,
    encode_image: Encode,
    runtime: FakeRuntime,
    ask: Ask,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving(watchdog_hang_limit_s=0.3) as server:
        runtime.gate.clear()
        held = asyncio.ensure_future(ask(server, encode_image()))
        await until_ready(server, False)
        assert (await ask(server, encode_image())).status in UNAVAILABLE
        runtime.gate.set()
        assert (await held).status in OK | UNAVAILABLE
        await until_ready(server, True)
        assert (await ask(server, encode_image())).status in OK
    said = [line for line in caplog.messages if line.startswith("a model ")]
    assert said == ["a model no longer answers", "a model answers again"]
