"""What a whole server tells of its models and of itself, over both protocols."""

import asyncio
import base64
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

import grpc
import httpx

from service.grpc.generated import embed_pb2, image_pb2
from service.grpc.generated.encoder_service_pb2_grpc import EncoderServiceStub
from service.models.served_model import ServedModel
from service.server import Server

if TYPE_CHECKING:
    from tests.service.conftest import FakeRuntime

Serving = Callable[..., AbstractAsyncContextManager[Server]]
LIMIT_S = 20.0


def sample(server: Server, name: str, **labels: str) -> float:
    return server.metrics.registry.get_sample_value(f"tipserve_{name}", labels) or 0.0


def embed_by_grpc(server: Server, image: bytes, model: str) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{server.ports['grpc']}") as channel:
        request = embed_pb2.EmbedImagesRequest(images=[image_pb2.Image(encoded=image)], model=model)
        EncoderServiceStub(channel).EmbedImages(request, timeout=LIMIT_S)


async def test_requests_are_told_by_model_and_protocol(
    serving: Serving,
    encode_image: Callable[..., bytes],
    serve_fake: Callable[..., ServedModel],
    runtime: "FakeRuntime",
) -> None:
    image = encode_image()
    async with serving() as server:
        server.models.put(serve_fake(server.settings, server.metrics, runtime, "b"))
        base = f"http://127.0.0.1:{server.ports['http']}"
        headers = {"Content-Type": "image/png"}
        async with httpx.AsyncClient(base_url=base, timeout=LIMIT_S) as client:
            for query in ("", "?model=b", "?model=b", "?resolution=13", "?model=unknown"):
                await client.post(f"/v1/images:embed{query}", content=image, headers=headers)
            await client.get("/v1/models")
        await asyncio.to_thread(embed_by_grpc, server, image, "b")
        requests = {
            (labels["model"], labels["protocol"], labels["code"]): value
            for labels, value in samples(server, "tipserve_model_requests_total")
        }
        assert requests == {
            ("fake", "http", "200"): 1,
            ("fake", "http", "422"): 1,
            ("b", "http", "200"): 2,
            ("b", "grpc", "OK"): 1,
        }
        for model, count in (("fake", 1), ("b", 3)):
            assert sample(server, "model_batches_total", model=model) == count
            stage = {"model": model, "stage": "run"}
            assert sample(server, "model_stage_duration_seconds_count", **stage) == count


async def test_refusals_and_prompts_are_told_by_model(
    serving: Serving,
    encode_image: Callable[..., bytes],
    serve_fake: Callable[..., ServedModel],
    runtime: "FakeRuntime",
) -> None:
    images = 17 * [base64.b64encode(encode_image()).decode()]
    async with serving(max_queue_patches=64, max_batch_patches=64) as server:
        server.models.put(serve_fake(server.settings, server.metrics, runtime, "b"))
        base = f"http://127.0.0.1:{server.ports['http']}"
        async with httpx.AsyncClient(base_url=base, timeout=LIMIT_S) as client:
            large = await client.post("/v1/images:embed", json={"images": images, "model": "b"})
            for _ in range(2):
                words = {"texts": ["a", "e"], "model": "b"}
                assert (await client.post("/v1/texts:embed", json=words)).status_code == 200
        told = {
            (labels["model"], *(value for name, value in labels.items() if name != "model")): count
            for name in ("rejected", "prompts")
            for labels, count in samples(server, f"tipserve_model_{name}_total")
            if count
        }
        assert sample(server, "rejected_total", reason="too_large") == 1
    assert large.status_code == 413
    assert told == {("b", "too_large"): 1, ("b", "miss"): 2, ("b", "hit"): 2}


def samples(server: Server, name: str) -> list[tuple[dict[str, str], float]]:
    families = server.metrics.registry.collect()
    return [(s.labels, s.value) for family in families for s in family.samples if s.name == name]


async def test_readiness_is_told_until_the_server_leaves(serving: Serving) -> None:
    async with serving() as server:
        assert sample(server, "ready") == 1
        assert sample(server, "cpus") >= 1
        server.gate.announce_drain()
        assert sample(server, "ready") == 0


async def test_a_model_is_told_with_the_digest_of_its_package(serving: Serving) -> None:
    async with serving() as server:
        digest = server.models.find(None).manifest.digest
        told = [labels["package_digest"] for labels, _ in samples(server, "tipserve_model_info")]
    assert told == [digest[:12]]
