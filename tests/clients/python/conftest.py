"""The client against the real server, which runs in this process over a model without weights."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest

from service.server import Server
from tests.service.conftest import (
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

__all__ = [
    "encode_image",
    "entered",
    "load_fake",
    "make_settings",
    "manifest",
    "metrics",
    "runtime",
    "serve_fake",
    "serving",
]

Serving = Callable[..., AbstractAsyncContextManager[Server]]


class Asking:
    """One kind of client over one protocol, to be awaited either way."""

    def __init__(self, protocol: str, is_async: bool) -> None:
        self.protocol, self.is_async = protocol, is_async

    @asynccontextmanager
    async def client(
        self, server: Server, *, is_secure: bool = False, **options: Any
    ) -> AsyncIterator[Any]:
        """A client whose methods are awaited; the synchronous one's run in threads."""
        scheme = f"{self.protocol}{'s' if is_secure else ''}"
        url = f"{scheme}://127.0.0.1:{server.ports[self.protocol]}"
        if self.is_async:
            async with AsyncClient(url, **options) as client:
                yield client
        else:
            with Client(url, **options) as threaded:
                yield InThreads(threaded)


class InThreads:
    """A synchronous client for a test that is asynchronous, as its server is."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
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
