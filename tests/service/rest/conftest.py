"""A client of a server over the fake runtime, and images by URL without a network."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from service.errors import InvalidRequest
from service.safety.url_fetch import Hold, UrlFetcher
from service.server import Server
from tests.service.conftest import Serving

LIMIT_S = 20.0


def client_of(server: Server) -> httpx.AsyncClient:
    """A client; use it as a context."""
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.ports['http']}", timeout=LIMIT_S)


@pytest.fixture
def limits() -> dict[str, Any]:
    """Settings of the server of `client`; modules override them."""
    return {}


@pytest.fixture
async def client(serving: Serving, limits: dict[str, Any]) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a running server."""
    async with serving(**limits) as server, client_of(server) as made:
        yield made


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Images by URL; all other URLs fail."""
    images: dict[str, bytes] = {}

    async def fetch(self: UrlFetcher, url: str, hold: Hold, *, param: str) -> bytes:
        if url not in images:
            raise InvalidRequest(f"{param}: nothing", code="url_fetch_failed", param=param)
        hold(len(images[url]))
        return images[url]

    monkeypatch.setattr(UrlFetcher, "fetch", fetch)
    return images
