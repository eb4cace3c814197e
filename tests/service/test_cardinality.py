"""Nothing that callers make up becomes a series: no method, path, model, id or shape."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

import grpc
import httpx
import pytest
from prometheus_client import generate_latest

from service.grpc.generated import embed_pb2, image_pb2
from service.grpc.generated.encoder_service_pb2_grpc import EncoderServiceStub
from service.server import Server

if TYPE_CHECKING:
    from tests.service.conftest import FakeRuntime

Serving = Callable[..., AbstractAsyncContextManager[Server]]
Entered = Callable[[], Awaitable[bool]]
Encode = Callable[..., bytes]
LIMIT_S = 20.0
# Those that the HTTP parser lets through to the application.
VERBS = [
    ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PURGE"],
    ["POST", "HEAD", "MKCOL", "REPORT", "LOCK", "SEARCH"],
]


def series(server: Server) -> set[str]:
    """Name and labels of every sample of ours."""
    lines = generate_latest(server.metrics.registry).decode().splitlines()
    return {line.rpartition(" ")[0] for line in lines if line.startswith("tipserve_")}


def made_up(turn: int) -> Iterator[str]:
    return (f"made-up-{turn}-{number}" for number in range(6))


async def ask_rest(server: Server, turn: int, image: bytes) -> None:
    base = f"http://127.0.0.1:{server.ports['http']}"
    async with httpx.AsyncClient(base_url=base, timeout=LIMIT_S) as client:
        for verb, name in zip(VERBS[turn], made_up(turn), strict=True):
            headers = {"x-request-id": name, "traceparent": name, "Content-Type": "image/png"}
            await client.request(verb, f"/{name}", headers=headers)
            await client.request(verb, "/v1/images:embed", headers=headers)
            await client.get(f"/v1/models/{name}", headers=headers)
            await client.post(f"/v1/images:embed?model={name}", content=image, headers=headers)
            await client.post(f"/v1/images:embed?{name}=1", content=image, headers=headers)
            await client.post("/v1/texts:embed", json={"texts": [name], "model": name})
            await client.post("/v1/embeddings", json={"input": [name], "model": name})
            await client.post("/v1/embeddings", json={"input": [name]})
            await client.get(f"/v2/models/{name}/versions/{name}", headers=headers)
            await client.post(f"/v2/models/{name}/infer", json={"inputs": []})
            await client.post(f"/v2/{name}", json={})


def ask_grpc(server: Server, turn: int, image: bytes) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{server.ports['grpc']}") as channel:
        for name in made_up(turn):
            word = name.replace("-", "_")
            for path in (
                f"/{word}.Service/Do",
                f"/tipserve.v1.EncoderService/{word}",
                f"/inference.GRPCInferenceService/{word}",
            ):
                call: Any = channel.unary_unary(path)
                with pytest.raises(grpc.RpcError, match="UNIMPLEMENTED"):
                    call(b"", timeout=LIMIT_S)
            message = image_pb2.Image(encoded=image)
            request = embed_pb2.EmbedImagesRequest(images=[message], model=name)
            with pytest.raises(grpc.RpcError, match="NOT_FOUND"):
                EncoderServiceStub(channel).EmbedImages(
                    request, timeout=LIMIT_S, metadata=[("x-request-id", name)]
                )


async def test_what_callers_make_up_adds_no_series(serving: Serving, encode_image: Encode) -> None:
    async with serving() as server:
        counts = []
        for turn in range(2):
            await ask_rest(server, turn, encode_image())
            await asyncio.to_thread(ask_grpc, server, turn, encode_image())
            counts.append(series(server))
    assert counts[0] == counts[1]
    assert not [name for name in counts[1] if re.search("made.up|PURGE|SEARCH", name)]
    other = {name for name in counts[1] if name.startswith('tipserve_requests_total{code="404",m')}
    assert 'tipserve_requests_total{code="404",method="other"}' in other
    assert 'tipserve_requests_total{code="UNIMPLEMENTED",method="other"}' in counts[1]


async def test_shapes_that_callers_choose_share_one_bucket(
    serving: Serving, encode_image: Encode, runtime: "FakeRuntime", entered: Entered
) -> None:
    images = [encode_image(size=(28 + 14 * n, 28)) for n in range(6)]
    async with serving() as server:
        url = f"http://127.0.0.1:{server.ports['http']}/v1/images:embed?fit=aspect"
        async with httpx.AsyncClient(timeout=LIMIT_S) as client:
            png = {"Content-Type": "image/png"}
            runtime.gate.clear()
            asked = [
                asyncio.ensure_future(client.post(url, content=p, headers=png)) for p in images
            ]
            assert await entered()
            async with asyncio.timeout(LIMIT_S):
                while sum(depths(server).values()) < len(images) - 1:
                    await asyncio.sleep(0.001)
            seen = set(depths(server))
            runtime.gate.set()
            await asyncio.gather(*asked)
    served = {
        f"{kind} {size}" for kind in ("image", "depth", "normals") for size in ("28x28", "28x42")
    }
    assert seen <= {*served, "image other"}
    assert "image other" in seen


def depths(server: Server) -> dict[str, float]:
    text = generate_latest(server.metrics.registry).decode()
    found = re.findall(r'^tipserve_queue_depth\{bucket="(.*)"\} (.*)$', text, re.MULTILINE)
    return {bucket: float(depth) for bucket, depth in found}
