"""With API keys set, every route and every RPC of a whole server needs one, except those named."""

import asyncio
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from fastapi import FastAPI
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from service.server import Server
from tests.service.callers import ENCODER, LIMIT_S, grpc_channel, http_client
from tests.service.conftest import Encode, Entered, FakeRuntime, Serving, until

KEY = "the-key-of-this-test"
# To add one, give the reason in rest/connection.py or grpc/guard.py.
OPEN_ROUTES = {"/v2/health/live", "/v2/health/ready", "/docs", "/openapi.json"}
OPEN_ROUTES |= {"/health", "/healthz", "/ping", "/of/a/cloud/health"}
# The pages and one of their files.
OPEN_ROUTES |= {"/", "/favicon.ico", "/web/app.js"}
OPEN_SERVICES = {"grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"}
OPEN_SERVICES |= {"grpc.reflection.v1alpha.ServerReflection"}


def routes_of(server: Server) -> Iterator[tuple[str, str]]:
    """Method and path of every route of the application inside all middleware."""
    app: Any = server._http.config.app
    while not isinstance(app, FastAPI):
        app = app._app
    waiting = list(app.routes)
    while waiting:
        route: Any = waiting.pop()
        if hasattr(route, "original_router"):
            waiting += route.original_router.routes
            continue
        if isinstance(route, Mount):
            assert isinstance(route.app, StaticFiles), "other mounted applications have routes"
            yield "GET", f"{route.path}/app.js"
            continue
        for method in route.methods:
            yield method, route.path


def rpcs_of(server: Server) -> set[str]:
    """Full name of every RPC that reflection lists."""
    with grpc.insecure_channel(f"127.0.0.1:{server.ports['grpc']}") as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        pool = DescriptorPool(database)
        return {
            f"/{service}/{method.name}"
            for service in database.get_services()
            for method in pool.FindServiceByName(service).methods
        }


def service_of(rpc: str) -> str:
    return rpc.lstrip("/").rpartition("/")[0]


async def code_of(channel: Any, rpc: str, key: dict[str, str]) -> str:
    """The code of an RPC of any kind for an empty message."""
    call = channel.unary_stream(rpc)(b"", timeout=LIMIT_S, metadata=tuple(key.items()))
    try:
        await call.read()
        call.cancel()
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


async def test_every_route_needs_a_key_but_the_open_ones(serving: Serving, tmp_path: Path) -> None:
    statuses = {}
    options = {"api_keys": KEY, "enable_management": True, "model_repository": tmp_path}
    options |= {"health_route": "/of/a/cloud/health", "predict_route": "/of/a/cloud:predict"}
    async with serving(**options) as server:
        routes = sorted(routes_of(server))
        paths = {path for _, path in routes}
        assert paths >= OPEN_ROUTES | {"/v1/images:embed", "/v1/models", "/v2/repository/index"}
        assert paths >= {"/v1/embeddings", "/invocations", "/of/a/cloud:predict"}
        async with http_client(server) as client:
            for method, path in [*routes, ("POST", "/v1/nowhere"), ("OPTIONS", "/v1/models")]:
                asked = re.sub(r"{\w+}", "fake", path)
                for headers in ({}, {"X-Api-Key": KEY + "x"}):
                    answer = await client.request(method, asked, headers=headers)
                    statuses[method, path] = answer.status_code
                    is_open = path in OPEN_ROUTES and method in {"GET", "HEAD"}
                    assert (answer.status_code == 401) != is_open, (method, path)
            refused = await client.post("/v1/texts:embed", json={"texts": ["dog"]})
            for headers in ({"X-Api-Key": KEY}, {"Authorization": f"Bearer {KEY}"}):
                passed = await client.post(
                    "/v1/texts:embed", json={"texts": ["dog"]}, headers=headers
                )
                assert passed.status_code == 200
    assert refused.headers["www-authenticate"] == 'Bearer realm="tipserve"'
    assert refused.json()["error"]["type"] == "authentication_error"
    assert refused.json()["error"]["code"] == "missing_api_key"
    assert statuses["GET", "/v2/health/ready"] == 200


async def test_every_rpc_needs_a_key_but_the_open_ones(serving: Serving) -> None:
    async with serving(api_keys=KEY) as server, grpc_channel(server) as channel:
        rpcs = await asyncio.to_thread(rpcs_of, server)
        assert {service_of(rpc) for rpc in rpcs} >= OPEN_SERVICES | {"tipserve.v1.EncoderService"}
        for rpc in sorted(rpcs | {"/made.up.Service/Method", "/nothing"}):
            for key in ({}, {"x-api-key": KEY + "x"}):
                code = await code_of(channel, rpc, key)
                is_open = service_of(rpc) in OPEN_SERVICES
                assert (code == "UNAUTHENTICATED") != is_open, (rpc, code)
        for key in ({"x-api-key": KEY}, {"authorization": f"Bearer {KEY}"}):
            assert await code_of(channel, f"{ENCODER}/ListModels", key) == "OK"


async def test_a_keys_limits_are_of_both_protocols(
    serving: Serving,
    tmp_path: Path,
    runtime: FakeRuntime,
    entered: Entered,
    encode_image: Encode,
) -> None:
    file = tmp_path / "keys"
    file.write_text(f"{KEY} name=acme requests_at_once=1 requests_per_s=0.001\n{KEY}2\n")
    body, send = encode_image(), {"Content-Type": "image/png"}
    mine, other = {"x-api-key": KEY}, {"x-api-key": f"{KEY}2"}
    path, rpc = "/v1/images:embed", f"{ENCODER}/ListModels"
    async with (
        serving(api_keys_file=file) as server,
        grpc_channel(server) as channel,
        http_client(server) as client,
    ):
        runtime.gate.clear()
        first = asyncio.ensure_future(client.post(path, content=body, headers={**send, **mine}))
        assert await entered()
        refused = await client.get("/v1/models", headers=mine)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) > 900
        assert refused.json()["error"]["code"] == "key_rate_exceeded"
        assert await code_of(channel, rpc, mine) == "RESOURCE_EXHAUSTED"
        assert await code_of(channel, rpc, other) == "OK"
        file.write_text(f"{KEY} name=acme requests_at_once=1\n{KEY}2\n")
        server.protection.keys._watch._next = -math.inf
        refused = await client.get("/v1/models", headers=mine)
        assert refused.json()["error"]["code"] == "key_busy"
        assert await code_of(channel, rpc, mine) == "RESOURCE_EXHAUSTED"
        runtime.gate.set()
        assert (await first).status_code == 200
        for _ in range(3):
            # Each gives its place back, also one that fails.
            assert (await client.get("/v1/nowhere", headers=mine)).status_code == 404
            await until(lambda: is_free(server))
            assert await code_of(channel, rpc, mine) == "OK"
            await until(lambda: is_free(server))
    text = server.metrics.registry.get_sample_value
    labels = {"caller": "acme", "outcome": "accepted"}
    assert text("tipserve_caller_requests_total", labels) == 7


def is_free(server: Server) -> bool:
    return not server.protection.keys._limits._running["acme"]


async def test_a_request_without_a_key_is_refused_before_its_body_is_sent(serving: Serving) -> None:
    head = b"POST /v1/images:embed HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
    async with serving(api_keys=KEY) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.ports["http"])
        writer.write(head + b"Expect: 100-continue\r\nContent-Length: 1000000\r\n\r\n")
        first = await asyncio.wait_for(reader.readline(), LIMIT_S)
        writer.close()
        await writer.wait_closed()
    assert first.startswith(b"HTTP/1.1 401"), "and not 100 Continue"


@pytest.mark.parametrize("setting", [{"api_keys": ""}, {"api_keys_file": "/no/such/file"}])
async def test_keys_that_cannot_be_read_stop_the_start(
    make_settings: Callable[..., Any], setting: dict[str, str]
) -> None:
    with pytest.raises((ValueError, OSError)):
        Server(make_settings(**setting))
