"""With API keys set, every route of a whole server needs one, except those named."""

import asyncio
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from service.server import Server
from tests.service.callers import LIMIT_S, http_client
from tests.service.conftest import Serving

KEY = "the-key-of-this-test"
# To add one, give the reason in rest/middleware.py or grpc/interceptor.py.
OPEN_ROUTES = {"/v2/health/live", "/v2/health/ready", "/docs", "/openapi.json"}
OPEN_ROUTES |= {"/health", "/healthz", "/ping", "/of/a/cloud/health"}
# The pages and one of their files.
OPEN_ROUTES |= {"/", "/favicon.ico", "/web/app.js"}


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
