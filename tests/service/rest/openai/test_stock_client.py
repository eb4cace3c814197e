"""The stock `openai` client where the server is full, slow or late: exceptions and retries."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

import openai
import pytest

from service.server import Server

if TYPE_CHECKING:
    from tests.service.conftest import FakeRuntime

Serving = Callable[..., AbstractAsyncContextManager[Server]]
Entered = Callable[[], Awaitable[bool]]
LIMIT_S = 20.0
# Room for one new prompt, and then for nothing.
NARROW = {"max_queue_patches": 8, "max_batch_patches": 8, "text_cache_bytes": 1}


def connect(server: Server, **options: Any) -> openai.AsyncOpenAI:
    url = f"http://127.0.0.1:{server.ports['http']}/v1"
    settings: Any = {"base_url": url, "api_key": "none", "timeout": LIMIT_S, "max_retries": 0}
    return openai.AsyncOpenAI(**settings | options)


async def test_a_full_server_is_a_rate_limit_error(
    serving: Serving, runtime: "FakeRuntime", entered: Entered
) -> None:
    async with serving(**NARROW) as server, connect(server) as client:
        runtime.gate.clear()
        first = asyncio.ensure_future(client.embeddings.create(model="fake", input="first"))
        assert await entered()
        with pytest.raises(openai.RateLimitError) as caught:
            await client.embeddings.create(model="fake", input="second")
        runtime.gate.set()
        await first
    assert caught.value.code == "queue_full"
    assert int(caught.value.response.headers["retry-after"]) >= 1


async def test_the_clients_retry_waits_as_long_as_it_is_told(
    serving: Serving, runtime: "FakeRuntime", entered: Entered, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    told: list[str] = []

    async def note(response: Any) -> None:
        if response.status_code == 429:
            told.append(response.headers["retry-after"])

    async with serving(**NARROW) as server, connect(server, max_retries=1) as client:
        client._client.event_hooks["response"].append(note)
        runtime.gate.clear()
        first = asyncio.ensure_future(client.embeddings.create(model="fake", input="first"))
        assert await entered()

        async def sleep(seconds: float) -> None:
            """Instead of time passing, the room becomes free."""
            waits.append(seconds)
            runtime.gate.set()
            await first

        monkeypatch.setattr("anyio.sleep", sleep)
        answer = await client.embeddings.create(model="fake", input="second")
    assert len(answer.data) == 1
    assert waits == [float(seconds) for seconds in told]
    assert len(waits) == 1


async def test_who_times_out_is_not_computed_for(
    serving: Serving, runtime: "FakeRuntime", entered: Entered
) -> None:
    async with serving(text_cache_bytes=1) as server, connect(server) as client:
        runtime.gate.clear()
        first = asyncio.ensure_future(client.embeddings.create(model="fake", input="first"))
        assert await entered()
        with pytest.raises(openai.APITimeoutError):
            await client.embeddings.create(model="fake", input="second", timeout=0.5)
        (model,) = server.models.models()
        async with asyncio.timeout(LIMIT_S):
            while sum(model.queue_depths().values()):
                await asyncio.sleep(0.001)
        runtime.gate.set()
        await first
        assert runtime.num_texts == 1


async def test_a_deadline_in_a_header_is_an_error_of_the_server(
    serving: Serving, runtime: "FakeRuntime", entered: Entered
) -> None:
    async with serving() as server, connect(server) as client:
        runtime.gate.clear()
        with pytest.raises(openai.InternalServerError) as caught:
            await client.embeddings.create(
                model="fake", input="late", extra_headers={"X-Request-Timeout-Ms": "500"}
            )
        assert await entered()
    assert (caught.value.status_code, caught.value.type) == (504, "deadline_exceeded")


async def test_a_draining_server_is_told_by_a_status_error(serving: Serving) -> None:
    async with serving() as server, connect(server) as client:
        server.gate.drain()
        with pytest.raises(openai.InternalServerError) as caught:
            await client.embeddings.create(model="fake", input="a dog")
    assert caught.value.status_code == 503
    assert caught.value.response.headers["retry-after"]
