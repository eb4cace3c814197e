"""Fixtures: both kinds of client over both protocols, against a server with a fake runtime."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from service.server import Server
from tests.service.conftest import (  # noqa: F401 - fixtures
    encode_image,
    entered,
    load_fake,
    make_settings,
    manifest,
    metrics,
    runtime,
    serve_fake,
    serving,
)
from tipserve_client import AsyncClient, Client

LIMIT_S = 20.0
Serving = Callable[..., AbstractAsyncContextManager[Server]]


class Asking:
    """A kind of client and a protocol."""

    def __init__(self, protocol: str, is_async: bool) -> None:
        self.protocol, self.is_async = protocol, is_async

    def client(
        self, server: Server, *, is_secure: bool = False, **options: Any
    ) -> AbstractAsyncContextManager[Any]:
        """A client whose methods are awaited; those of the synchronous client run in threads."""
        scheme = f"{self.protocol}{'s' if is_secure else ''}"
        url = f"{scheme}://127.0.0.1:{server.ports[self.protocol]}"
        return connected(url, self.is_async, **options)


@asynccontextmanager
async def connected(url: str, is_async: bool, **options: Any) -> AsyncIterator[Any]:
    """Either kind of client, with methods that are awaited."""
    if is_async:
        async with AsyncClient(url, **options) as client:
            yield client
    else:
        with Client(url, **options) as threaded:
            yield InThreads(threaded)


class InThreads:
    """Runs the methods of a synchronous client in threads."""

    def __init__(self, client: Client) -> None:
        self.wrapped = client

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.wrapped, name)
        if name == "stream_images":
            return lambda *given, **named: _stepping(method(*given, **named))
        return lambda *given, **named: asyncio.to_thread(method, *given, **named)


async def _stepping(items: Iterator[Any]) -> AsyncIterator[Any]:
    end = object()
    try:
        while (item := await asyncio.to_thread(next, items, end)) is not end:
            yield item
    finally:
        await asyncio.to_thread(items.close)  # type: ignore[attr-defined]  # a generator has it


@pytest.fixture(
    params=[("http", False), ("http", True), ("grpc", False), ("grpc", True)],
    ids=["http", "http aio", "grpc", "grpc aio"],
)
def asking(request: pytest.FixtureRequest) -> Asking:
    """Each kind of client over each protocol."""
    return Asking(*request.param)


@pytest.fixture
async def server(serving: Serving) -> AsyncIterator[Server]:  # noqa: F811 - a fixture
    """A server with a fake runtime."""
    async with serving() as started:
        yield started


@pytest.fixture
async def client(server: Server, asking: Asking) -> AsyncIterator[Any]:
    """Each kind of client, connected to the server."""
    async with asking.client(server) as connected_client:
        yield connected_client


def assert_equal(found: Any, expected: Any) -> None:
    """Compare arrays and values, also those in dataclasses and lists."""
    if isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_equal(one, other)
    elif hasattr(expected, "__dataclass_fields__"):
        assert type(found) is type(expected)
        for field in fields(expected):
            assert_equal(getattr(found, field.name), getattr(expected, field.name))
    else:
        np.testing.assert_array_equal(found, expected)


async def until(condition: Callable[[], bool]) -> None:
    """Wait until the condition holds."""
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0.001)


def inflight(server: Server) -> float:
    """Requests that the server computes now."""
    return server.metrics.registry.get_sample_value("tipserve_inflight") or 0.0
