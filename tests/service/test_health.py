"""A device that dies or hangs under a whole server, as both transports report it."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from service.grpc.generated import embed_pb2, image_pb2
from service.grpc.generated.encoder_service_pb2_grpc import EncoderServiceStub
from service.server import Server

if TYPE_CHECKING:
    from tests.service.conftest import FakeRuntime

Serving = Callable[..., AbstractAsyncContextManager[Server]]
Encode = Callable[..., bytes]
TIMEOUT_S = 20.0
QUICK = {"watchdog_interval_s": 0.05, "watchdog_dead_limit_s": 0.2}


async def probe_rest(server: Server, name: str) -> int:
    async with httpx.AsyncClient(timeout=TIMEOUT_S) as client:
        url = f"http://127.0.0.1:{server.ports['http']}/v2/health/{name}"
        return (await client.get(url)).status_code


async def probe_grpc(server: Server, service: str) -> str:
    def ask() -> str:
        with grpc.insecure_channel(f"127.0.0.1:{server.ports['grpc']}") as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            request = health_pb2.HealthCheckRequest(service=service)
            answer = stub.Check(request, timeout=TIMEOUT_S)
            return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)

    return await asyncio.to_thread(ask)


async def embed_rest(server: Server, image: bytes) -> str:
    url = f"http://127.0.0.1:{server.ports['http']}/v1/images:embed"
    async with httpx.AsyncClient(timeout=TIMEOUT_S) as client:
        answer = await client.post(url, content=image, headers={"Content-Type": "image/png"})
    return str(answer.status_code)


async def embed_grpc(server: Server, image: bytes) -> str:
    request = embed_pb2.EmbedImagesRequest(images=[image_pb2.Image(encoded=image)])

    def ask() -> str:
        with grpc.insecure_channel(f"127.0.0.1:{server.ports['grpc']}") as channel:
            try:
                EncoderServiceStub(channel).EmbedImages(request, timeout=TIMEOUT_S)
            except grpc.RpcError as error:
                return str(error.code().name)
            return "OK"

    return await asyncio.to_thread(ask)


Ask = Callable[[Server, bytes], Awaitable[str]]
BOTH = pytest.mark.parametrize(
    ("ask", "ok", "internal", "unavailable"),
    [(embed_rest, "200", "500", "503"), (embed_grpc, "OK", "INTERNAL", "UNAVAILABLE")],
    ids=["rest", "grpc"],
)


async def until_rest(server: Server, name: str, status: int) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while await probe_rest(server, name) != status:
            await asyncio.sleep(0.01)


async def until_grpc(server: Server, status: str) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        for service in ("", "fake"):
            while await probe_grpc(server, service) != status:
                await asyncio.sleep(0.01)


@BOTH
async def test_a_dead_device_ends_readiness_and_then_liveness(
    serving: Serving,
    encode_image: Encode,
    runtime: "FakeRuntime",
    ask: Ask,
    ok: str,
    internal: str,
    unavailable: str,
) -> None:
    async with serving(**QUICK) as server:
        assert await ask(server, encode_image()) == ok
        assert await probe_rest(server, "ready") == await probe_rest(server, "live") == 200
        runtime.fault = "broken"
        assert await ask(server, encode_image()) in {internal, unavailable}
        await until_rest(server, "ready", 503)
        await until_grpc(server, "NOT_SERVING")
        assert await ask(server, encode_image()) == unavailable
        await until_rest(server, "live", 503)


@BOTH
async def test_a_device_that_comes_back_is_used_again(
    serving: Serving,
    encode_image: Encode,
    runtime: "FakeRuntime",
    ask: Ask,
    ok: str,
    internal: str,
    unavailable: str,
) -> None:
    runtime.num_repairs = 1000  # it is not given up while the test looks elsewhere
    async with serving(watchdog_interval_s=0.05) as server:
        runtime.fault = "broken"
        asked = asyncio.ensure_future(ask(server, encode_image()))
        await until_rest(server, "ready", 503)
        runtime.fault = ""
        # If the lane notices by itself, requests admitted before are still answered.
        assert await asked in {ok, internal, unavailable}
        await until_rest(server, "ready", 200)
        await until_grpc(server, "SERVING")
        assert await ask(server, encode_image()) == ok
        sample = server.metrics.registry.get_sample_value
        assert sample("tipserve_lane_rebuilds_total") == 1
        assert await probe_rest(server, "live") == 200


@BOTH
async def test_a_device_that_hangs_is_found_out_and_its_answer_still_counts(
    serving: Serving,
    encode_image: Encode,
    runtime: "FakeRuntime",
    ask: Ask,
    ok: str,
    internal: str,
    unavailable: str,
) -> None:
    async with serving(watchdog_interval_s=0.05, watchdog_hang_limit_s=0.3) as server:
        runtime.gate.clear()
        held = asyncio.ensure_future(ask(server, encode_image()))
        await until_rest(server, "ready", 503)
        await until_grpc(server, "NOT_SERVING")
        assert await ask(server, encode_image()) == unavailable
        runtime.gate.set()
        assert await held in {ok, unavailable}
        await until_rest(server, "ready", 200)
        await until_grpc(server, "SERVING")
        assert await ask(server, encode_image()) == ok
