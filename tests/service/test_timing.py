"""Every answer says how long its stages took, errors too: header and trailing metadata alike."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

import grpc
import httpx
import pytest

from service.grpc.generated import embed_pb2, image_pb2
from service.grpc.generated.encoder_service_pb2_grpc import EncoderServiceStub
from service.server import Server

if TYPE_CHECKING:
    from tests.service.conftest import FakeRuntime

Serving = Callable[..., AbstractAsyncContextManager[Server]]
Entered = Callable[[], Awaitable[bool]]
Encode = Callable[..., bytes]
Ask = Callable[..., Awaitable[dict[str, str]]]
LIMIT_S = 20.0


async def over_rest(server: Server, image: bytes, timeout_ms: int = 20_000) -> dict[str, str]:
    headers = {"Content-Type": "image/png", "X-Request-Timeout-Ms": str(timeout_ms)}
    url = f"http://127.0.0.1:{server.ports['http']}/v1/images:embed"
    async with httpx.AsyncClient(timeout=LIMIT_S) as client:
        answer = await client.post(url, content=image, headers={**headers, "x-request-id": "me"})
    return {**answer.headers, "status": str(answer.status_code)}


async def over_grpc(server: Server, image: bytes) -> dict[str, str]:
    request = embed_pb2.EmbedImagesRequest(images=[image_pb2.Image(encoded=image)])

    def ask() -> dict[str, str]:
        with grpc.insecure_channel(f"127.0.0.1:{server.ports['grpc']}") as channel:
            stub = EncoderServiceStub(channel)
            metadata = [("x-request-id", "me")]
            try:
                _, call = stub.EmbedImages.with_call(request, timeout=LIMIT_S, metadata=metadata)
            except grpc.RpcError as error:
                call = error
            return {**dict(call.trailing_metadata() or ()), "status": call.code().name}

    return await asyncio.to_thread(ask)


BOTH = pytest.mark.parametrize("ask", [over_rest, over_grpc], ids=["rest", "grpc"])


def stages(headers: dict[str, str]) -> dict[str, float]:
    """Milliseconds by stage; together never more than the total."""
    assert headers["x-request-id"] == "me"
    parts = [part.split(";dur=") for part in headers["server-timing"].split(", ")]
    durations = {name: float(milliseconds) for name, milliseconds in parts}
    rounding = 0.01 * len(durations)
    assert sum(durations.values()) <= 2 * durations["total"] + rounding
    return durations


@BOTH
async def test_a_good_answer(serving: Serving, encode_image: Encode, ask: Ask) -> None:
    async with serving() as server:
        headers = await ask(server, encode_image())
    assert headers["status"] in {"200", "OK"}
    assert list(stages(headers)) == ["admit", "decode", "queue", "run", "post", "total"]


@BOTH
async def test_a_broken_image(serving: Serving, ask: Ask) -> None:
    async with serving() as server:
        headers = await ask(server, b"no image")
    assert headers["status"] in {"422", "INVALID_ARGUMENT"}
    assert list(stages(headers)) == ["admit", "decode", "total"]


@BOTH
async def test_a_batch_that_fails(
    serving: Serving, encode_image: Encode, runtime: "FakeRuntime", ask: Ask
) -> None:
    async with serving() as server:
        runtime.fault = "raise"
        headers = await ask(server, encode_image())
    assert headers["status"] in {"500", "INTERNAL"}
    assert list(stages(headers)) == ["admit", "decode", "total"]


@BOTH
async def test_a_full_queue(
    serving: Serving, encode_image: Encode, runtime: "FakeRuntime", entered: Entered, ask: Ask
) -> None:
    async with serving(max_queue_patches=6, max_batch_patches=6) as server:
        runtime.gate.clear()
        first = asyncio.ensure_future(ask(server, encode_image()))
        assert await entered()
        headers = await ask(server, encode_image())
        runtime.gate.set()
        await first
    assert headers["status"] in {"429", "RESOURCE_EXHAUSTED"}
    assert set(stages(headers)) <= {"admit", "total"}


async def test_a_deadline_that_passed_in_the_queue(
    serving: Serving, encode_image: Encode, runtime: "FakeRuntime", entered: Entered
) -> None:
    """Over REST: a gRPC client whose own deadline passed receives no metadata."""
    async with serving() as server:
        runtime.gate.clear()
        first = asyncio.ensure_future(over_rest(server, encode_image()))
        assert await entered()
        headers = await over_rest(server, encode_image(), timeout_ms=1000)
        runtime.gate.set()
        await first
    assert headers["status"] == "504"
    durations = stages(headers)
    assert list(durations) == ["admit", "decode", "queue", "total"]
    assert durations["queue"] == max(v for name, v in durations.items() if name != "total")


@BOTH
async def test_a_caller_without_a_key(serving: Serving, encode_image: Encode, ask: Ask) -> None:
    async with serving(api_keys="a-key-that-is-long-enough-to-be-one") as server:
        headers = await ask(server, encode_image())
    assert headers["status"] in {"401", "UNAUTHENTICATED"}
    assert list(stages(headers)) == ["total"]
