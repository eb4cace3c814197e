"""A server as an engine: one mapping of errors for both protocols, and retries."""

import asyncio
from collections.abc import Iterable
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.numpy import save

from service.messages import (
    ClassifyImagesRequest,
    EmbedImagesRequest,
    EmbedTextsRequest,
    EstimateMapsRequest,
    SegmentClass,
    SegmentImagesRequest,
    VisualizeFeaturesRequest,
)
from tests.service.conftest import Encode, Serving
from tipserve_cli.engines.engine import EngineError, ImageRefused
from tipserve_cli.engines.remote import MAX_ATTEMPTS, RemoteEngine

REQUEST = EmbedImagesRequest(images=(b"x",))
EMBEDDED = save({"cls1": np.ones((1, 4), np.float32)})


def classes(number: int) -> tuple[SegmentClass, ...]:
    return tuple(SegmentClass(name=f"c{index}") for index in range(number))


@pytest.mark.parametrize("protocol", ["http", "grpc"])
async def test_both_protocols_give_the_same_results_and_errors(
    serving: Serving, encode_image: Encode, protocol: str
) -> None:
    image = encode_image()
    limits = {"max_image_bytes": 100_000, "max_request_bytes": 200_000}

    def ask(url: str) -> None:
        engine = RemoteEngine(url, None)
        embedding = engine.embed(EmbedImagesRequest(images=(image,), outputs=("patches",)))
        assert {name: array.shape for name, array in embedding.result().items()} == {
            "patches": (2, 2, 8)
        }
        prompts = (SegmentClass(name="dog", prompts=("a dog",)), SegmentClass(name="sky"))
        labels_HW = (
            engine.segment(SegmentImagesRequest(images=(image,), classes=prompts))
            .result()
            .labels_HW
        )
        assert labels_HW.shape == (30, 40)
        found = engine.classify(ClassifyImagesRequest(images=(image,), classes=classes(3), top_k=2))
        assert {one.name for one in found.result()} < {"c0", "c1", "c2"}
        assert len(found.result()) == 2
        drawn = engine.visualize(VisualizeFeaturesRequest(images=(image,), kind="groups"))
        assert drawn.result().shape == (30, 40)
        texts = engine.embed_texts(EmbedTextsRequest(texts=("a", "b"))).result()
        assert texts.shape == (2, 8)
        (model,) = engine.models()
        assert (model.name, model.embed_dim, "text" in model.outputs) == ("fake", 8, False)
        for bad in (b"no image", b"\xff" * 150_000, b"\xff" * 300_000):
            with pytest.raises(ImageRefused):
                engine.embed(EmbedImagesRequest(images=(bad,))).result()
        for request in (
            SegmentImagesRequest(images=(image,), classes=classes(2) * 2),
            SegmentImagesRequest(images=(image,), classes=classes(600)),
            SegmentImagesRequest(images=(image,), classes=classes(2), model="other"),
        ):
            with pytest.raises(EngineError):
                engine.segment(request).result()
        with pytest.raises(EngineError):
            engine.embed_texts(EmbedTextsRequest(texts=("a", " "))).result()
        with pytest.raises(ImageRefused):
            engine.classify(ClassifyImagesRequest(images=(b"x",), classes=classes(1))).result()
        engine.close()

    async with serving(**limits) as server:
        await asyncio.to_thread(ask, f"{protocol}://127.0.0.1:{server.ports[protocol]}")


@pytest.mark.parametrize("protocol", ["http", "grpc"])
async def test_both_protocols_give_depth_and_normals(
    serving: Serving, encode_image: Encode, protocol: str
) -> None:
    image = encode_image()

    def ask(url: str) -> None:
        engine = RemoteEngine(url, None)
        depth_HW = engine.estimate(EstimateMapsRequest(task="depth", images=(image,))).result()
        assert depth_HW.shape == (30, 40)
        assert depth_HW.min() >= 1
        small = EstimateMapsRequest(task="normals", images=(image,), size="model", resolution=56)
        assert engine.estimate(small).result().shape == (32, 32, 3)
        with pytest.raises(ImageRefused):
            engine.estimate(EstimateMapsRequest(task="normals", images=(b"x",))).result()
        engine.close()

    async with serving() as server:
        await asyncio.to_thread(ask, f"{protocol}://127.0.0.1:{server.ports[protocol]}")


def scripted(answers: Iterable[httpx.Response], pauses: list[float]) -> RemoteEngine:
    """An engine whose server gives these answers, and whose pauses take no time."""
    engine = RemoteEngine("http://stand-in", None)
    client: Any = engine._client
    remaining = iter(answers)
    client._transport._client._transport = httpx.MockTransport(lambda request: next(remaining))
    client._sleep = pauses.append
    return engine


def full(retry_after: str = "0") -> httpx.Response:
    error = {"message": "The queue is full.", "code": "queue_full", "param": None}
    return httpx.Response(429, json={"error": error}, headers={"Retry-After": retry_after})


@pytest.mark.parametrize("status", [429, 503, 504])
def test_a_busy_server_is_asked_again(status: int) -> None:
    pauses: list[float] = []
    busy = [httpx.Response(status) for _ in range(3)]
    engine = scripted([*busy, full("7"), httpx.Response(200, content=EMBEDDED)], pauses)
    assert engine.embed(REQUEST).result(10)["cls1"].shape == (4,)
    assert len(pauses) == 4
    assert pauses[3] >= 7
    engine.close()


def test_retries_end_and_are_explained_once(caplog: pytest.LogCaptureFixture) -> None:
    pauses: list[float] = []
    engine = scripted([full() for _ in range(2 * MAX_ATTEMPTS)], pauses)
    for _ in range(2):
        with pytest.raises(EngineError, match=r"The queue is full\."):
            engine.embed(REQUEST).result(10)
    assert len(pauses) == 2 * (MAX_ATTEMPTS - 1)
    assert len(caplog.messages) == 1
    assert "The queue is full." in caplog.messages[0]
    engine.close()


def test_an_unreachable_server_is_named() -> None:
    engine = scripted([httpx.Response(502) for _ in range(MAX_ATTEMPTS)], [])
    with pytest.raises(EngineError, match="http://stand-in is unavailable"):
        engine.models()
    engine.close()
