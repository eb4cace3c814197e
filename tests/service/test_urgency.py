"""Priorities and deadlines of whole requests, over both transports alike."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

import grpc
import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from service.grpc.generated import embed_pb2, image_pb2
from service.grpc.generated.encoder_service_pb2_grpc import EncoderServiceStub
from service.lanes.latency_model import LatencyCurve
from service.lanes.work import Bucket
from service.server import Server

if TYPE_CHECKING:
    from tests.service.conftest import FakeRuntime

Serving = Callable[..., AbstractAsyncContextManager[Server]]
Entered = Callable[[], Awaitable[bool]]
Encode = Callable[..., bytes]
TIMEOUT_S = 20.0


async def over_rest(server: Server, image: bytes, priority: str | None = None) -> str:
    headers = {"Content-Type": "image/png"}
    headers["X-Request-Timeout-Ms"] = str(int(1000 * TIMEOUT_S))
    headers |= {"X-Request-Priority": priority} if priority else {}
    url = f"http://127.0.0.1:{server.ports['http']}/v1/images:embed"
    async with httpx.AsyncClient(timeout=TIMEOUT_S) as client:
        return str((await client.post(url, content=image, headers=headers)).status_code)


async def over_grpc(server: Server, image: bytes, priority: str | None = None) -> str:
    request = embed_pb2.EmbedImagesRequest(images=[image_pb2.Image(encoded=image)])
    metadata = (("x-request-priority", priority),) if priority else ()

    def ask() -> str:
        with grpc.insecure_channel(f"127.0.0.1:{server.ports['grpc']}") as channel:
            stub = EncoderServiceStub(channel)
            try:
                stub.EmbedImages(request, timeout=TIMEOUT_S, metadata=metadata)
            except grpc.RpcError as error:
                return str(error.code().name)
            return "OK"

    return await asyncio.to_thread(ask)


Ask = Callable[..., Awaitable[str]]
BOTH = pytest.mark.parametrize("ask", [over_rest, over_grpc], ids=["rest", "grpc"])


@BOTH
async def test_the_urgent_are_computed_first(
    serving: Serving,
    encode_image: Encode,
    runtime: "FakeRuntime",
    entered: Entered,
    monkeypatch: pytest.MonkeyPatch,
    ask: Ask,
) -> None:
    seen: list[float] = []
    encode_images = runtime.encode_images

    def record(pixels_B3HW: NDArray[np.float32]) -> Any:
        seen.append(float(pixels_B3HW.mean()))
        return encode_images(pixels_B3HW)

    monkeypatch.setattr(runtime, "encode_images", record)
    images = [encode_image(seed=seed, size=(28, 28)) for seed in range(4)]
    async with serving(max_batch_images=1) as server:
        runtime.gate.clear()
        tasks = [asyncio.ensure_future(ask(server, images[0]))]
        assert await entered()
        for depth, (image, level) in enumerate(zip(images[1:], ("3", None, "1"), strict=True), 1):
            tasks.append(asyncio.ensure_future(ask(server, image, level)))
            await until(lambda depth=depth: waiting(server) == depth)  # type: ignore[misc]
        runtime.gate.set()
        assert set(await asyncio.gather(*tasks)) <= {"200", "OK"}
        in_turn = seen.copy()
        seen.clear()
        for image in images:
            await ask(server, image)
    first, low, usual, urgent = seen
    assert in_turn == [first, urgent, usual, low]


@BOTH
@pytest.mark.parametrize("level", ["0", "4", "urgent"])
async def test_an_unknown_priority_is_the_callers_mistake(
    serving: Serving, encode_image: Encode, ask: Ask, level: str
) -> None:
    async with serving() as server:
        status = await ask(server, encode_image(), level)
    assert status == ("422" if ask is over_rest else "INVALID_ARGUMENT")


@pytest.mark.slow
@BOTH
async def test_a_deadline_that_cannot_be_met_is_refused_at_once(
    serving: Serving,
    encode_image: Encode,
    runtime: "FakeRuntime",
    entered: Entered,
    ask: Ask,
) -> None:
    async with serving() as server:
        latency = server.models.find(None)._batcher.latency
        latency.set_measured(
            {Bucket("image", (28, 28)): LatencyCurve(0.0, 0.4 * TIMEOUT_S)}, lambda _: 4
        )
        runtime.gate.clear()
        requests = [asyncio.ensure_future(ask(server, encode_image()))]
        assert await entered()
        requests.append(asyncio.ensure_future(ask(server, encode_image())))
        await until(lambda: waiting(server) == 1)
        status = await ask(server, encode_image())
        assert waiting(server) == 1
        sample = server.metrics.registry.get_sample_value
        assert sample("tipserve_rejected_total", {"reason": "deadline"}) == 1
        urgent = asyncio.ensure_future(ask(server, encode_image(), "1"))
        await until(lambda: waiting(server) == 2)
        runtime.gate.set()
        assert set(await asyncio.gather(*requests, urgent)) <= {"200", "OK"}
    assert status == ("504" if ask is over_rest else "DEADLINE_EXCEEDED")
    assert runtime.num_images == 3


def waiting(server: Server) -> float:
    labels = {"bucket": "image 28x28"}
    return server.metrics.registry.get_sample_value("tipserve_queue_depth", labels) or 0.0


async def until(condition: Callable[[], bool]) -> None:
    """Give other tasks and threads their turn until something is so."""
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():
            await asyncio.sleep(0.001)
