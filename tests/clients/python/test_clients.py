"""Both clients over both protocols: the same answers, the same errors, streams in order."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, aclosing
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import tipserve_client
from service.server import Server
from tests.clients.python.comparison import assert_equal
from tipserve_client import TipserveError

if TYPE_CHECKING:
    from tests.clients.python.conftest import Asking
    from tests.service.conftest import FakeRuntime

Serving = Callable[..., AbstractAsyncContextManager[Server]]
Entered = Callable[[], Awaitable[bool]]
Encode = Callable[..., bytes]
LIMIT_S = 20.0


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0.001)


def inflight(server: Server) -> float:
    return server.metrics.registry.get_sample_value("tipserve_inflight") or 0.0


async def test_answers_are_those_of_the_data_plane(
    serving: Serving, encode_image: Encode, asking: "Asking"
) -> None:
    images = [encode_image(seed=seed) for seed in range(3)]
    every = ("cls1", "cls2", "patches", "values")
    classes = {"dog": ["a dog", "a photo of a dog"], "sky": []}
    async with serving() as server, asking.client(server) as client:
        embedded = await client.embed_images(images, outputs=every, normalize=False, resolution=42)
        words = await client.embed_texts(["dog", "sky"], templates=["a {}", "the {}"])
        masks = await client.segment(
            images,
            classes,
            background_threshold=0.1,
            background_classes=["wall"],
            include_scores=True,
            templates="tcl",
            features="patches",
            fit="squash",
        )
        ((best, _),) = await client.classify(images[0], classes)
        (colors,) = await client.features(images[0])
        depth = await client.depth(images, size="model")
        normals = await client.normals(images)
        (model,) = await client.models()
    assert [e.patches.shape for e in embedded] == [(3, 3, 8)] * 3
    assert embedded[0].cls1.dtype == np.float32
    assert words.shape == (2, 8)
    np.testing.assert_allclose(np.linalg.norm(words, axis=1), 1, rtol=1e-5)
    assert masks[0].labels.shape == masks[0].scores.shape == (30, 40)
    assert masks[0].labels.dtype == np.uint16
    assert [area.name for area in masks[0].classes] == ["dog", "sky"]
    assert sum(a.area_share for a in masks[0].classes) + masks[0].background_share == pytest.approx(
        1
    )
    assert best.probability >= 0.5
    assert best.name in classes
    assert colors.shape == (30, 40, 3)
    assert [array.shape for array in depth] == [(16, 24)] * 3
    assert normals[0].shape == (30, 40, 3)
    assert (model.name, model.embed_dim, model.native_size) == ("fake", 8, 28)
    assert "depth" in model.outputs


async def test_both_protocols_give_the_same(serving: Serving, encode_image: Encode) -> None:
    images = [encode_image(seed=seed, size=(50 + seed, 40)) for seed in range(3)]
    found = []
    async with serving() as server:
        for protocol in ("http", "grpc"):
            url = f"{protocol}://127.0.0.1:{server.ports[protocol]}"
            async with tipserve_client.AsyncClient(url) as client:
                found.append(
                    [
                        await client.embed_images(images, outputs=["patches", "cls2"]),
                        await client.embed_texts(["dog"]),
                        await client.segment(images, ["dog", "sky"], include_scores=True),
                        await client.segment(images[0], ["dog", "sky"], mode="slide"),
                        await client.classify(images, ["dog", "sky"], features="cls2", top_k=1),
                        await client.features(images, kind="groups", group_count=2),
                        await client.features(images, size="model"),
                        await client.depth(images),
                        [item.value async for item in client.stream_images(images)],
                    ]
                )
    for over_http, over_grpc in zip(*found, strict=True):
        assert_equal(over_http, over_grpc)


@pytest.mark.parametrize(
    ("kind", "code", "param", "index", "ask"),
    [
        ("InvalidRequest", "invalid_image", "images[1]", 1, lambda c, i: c.embed_images([i, b"x"])),
        ("InvalidRequest", "blank_text", "texts[1]", 1, lambda c, i: c.embed_texts(["dog", " "])),
        ("InvalidRequest", "invalid_field", "fit", None, lambda c, i: c.depth(i, fit="odd")),
        ("NotFound", "model_not_found", "model", None, lambda c, i: c.normals(i, model="nobody")),
        (
            "RequestTooLarge",
            "too_many_items",
            "images",
            None,
            lambda c, i: c.embed_images([i] * 33),
        ),
    ],
)
async def test_errors_say_what_and_where(
    serving: Serving,
    encode_image: Encode,
    asking: "Asking",
    kind: str,
    code: str,
    param: str,
    index: int | None,
    ask: Any,
) -> None:
    async with serving() as server, asking.client(server) as client:
        with pytest.raises(getattr(tipserve_client, kind)) as caught:
            await ask(client, encode_image())
        assert len(await client.embed_images(encode_image())) == 1
    error = caught.value
    assert (error.code, error.param, error.index) == (code, param, index)
    assert error.message
    assert error.request_id


async def test_a_key_is_sent(serving: Serving, encode_image: Encode, asking: "Asking") -> None:
    async with serving(api_keys="the-key-of-this-test") as server:
        async with asking.client(server, api_key="the-key-of-this-test") as client:
            assert len(await client.embed_images(encode_image())) == 1
            assert [i.index async for i in client.stream_images([encode_image()])] == [0]
        async with asking.client(server, api_key="another-key") as client:
            with pytest.raises(tipserve_client.Unauthenticated):
                await client.embed_images(encode_image())
            with pytest.raises(tipserve_client.Unauthenticated):
                [item async for item in client.stream_images([encode_image()])]


async def test_the_server_is_told_the_deadline(
    serving: Serving, encode_image: Encode, asking: "Asking", runtime: "FakeRuntime"
) -> None:
    async with serving() as server, asking.client(server, timeout_s=0.3) as client:
        runtime.gate.clear()
        with pytest.raises(tipserve_client.DeadlineExceeded):
            await client.embed_images(encode_image())
        await until(lambda: inflight(server) == 0)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
async def test_who_cancels_is_not_computed_for(
    serving: Serving, encode_image: Encode, protocol: str, runtime: "FakeRuntime", entered: Entered
) -> None:
    async with serving() as server:
        url = f"{protocol}://127.0.0.1:{server.ports[protocol]}"
        async with tipserve_client.AsyncClient(url) as client:
            runtime.gate.clear()
            asked = asyncio.ensure_future(client.embed_images(encode_image()))
            assert await entered()
            asked.cancel()
            await until(lambda: inflight(server) == 0)
            await asyncio.gather(asked, return_exceptions=True)


async def test_a_stream_answers_in_order_and_outlives_bad_images(
    serving: Serving, encode_image: Encode, asking: "Asking"
) -> None:
    turns = random.Random(0)
    images = [encode_image(seed=seed, size=(turns.choice((30, 90, 300)), 40)) for seed in range(40)]
    sent: list[Any] = list(images)
    sent[7], sent[20] = b"no image", "/no/such/file.jpg"
    async with serving(lanes=1, pool_threads=4) as server, asking.client(server) as client:
        items = [item async for item in client.stream_images(sent, outputs="cls2", window=9)]
        alone = await client.embed_images([images[3], images[39]], outputs="cls2")
    assert [item.index for item in items] == list(range(40))
    codes = {item.index: item.error.code for item in items if item.error}
    assert codes == {7: "invalid_image", 20: "unreadable_file"}
    with pytest.raises(TipserveError):
        items[7].result()
    np.testing.assert_allclose(items[3].result().cls2, alone[0].cls2, rtol=1e-5)
    np.testing.assert_allclose(items[39].result().cls2, alone[1].cls2, rtol=1e-5)


async def test_a_stream_takes_no_more_than_its_window_ahead(
    serving: Serving, encode_image: Encode, asking: "Asking"
) -> None:
    num_taken = num_answered = furthest = 0

    def images() -> Iterator[bytes]:
        nonlocal num_taken, furthest
        for seed in range(50):
            num_taken += 1
            furthest = max(furthest, num_taken - num_answered)
            yield encode_image(seed=seed)

    async with serving() as server, asking.client(server) as client:
        async for _ in client.stream_images(images(), window=5):
            num_answered += 1
    assert num_answered == 50
    assert furthest <= 5 + 2  # one in the feeder's hand, one that is being yielded


async def test_a_stream_that_is_left_is_over_on_the_server_too(
    serving: Serving, encode_image: Encode, asking: "Asking"
) -> None:
    def images() -> Iterator[bytes]:
        while True:
            yield encode_image()

    async with serving() as server, asking.client(server) as client:
        async with aclosing(client.stream_images(images())) as items:
            async for item in items:
                if item.index == 10:
                    break
        await until(lambda: inflight(server) == 0)
        assert len(await client.embed_images(encode_image())) == 1


async def test_what_the_callers_iterator_raises_is_raised(
    serving: Serving, encode_image: Encode, asking: "Asking"
) -> None:
    def images() -> Iterator[bytes]:
        yield encode_image()
        raise KeyError("of the caller")

    found = []
    async with serving() as server, asking.client(server) as client:
        items = client.stream_images(images())
        found.append((await anext(items)).index)
        with pytest.raises(KeyError, match="of the caller"):
            await anext(items)
    assert found == [0]


@pytest.mark.parametrize("protocol", ["http", "grpc"])
async def test_a_stream_answers_what_has_come_while_more_is_awaited(
    serving: Serving, encode_image: Encode, protocol: str
) -> None:
    more = asyncio.Event()

    async def images() -> AsyncIterator[bytes]:
        yield encode_image()
        await more.wait()
        yield encode_image(seed=1)

    async with serving() as server:
        url = f"{protocol}://127.0.0.1:{server.ports[protocol]}"
        async with tipserve_client.AsyncClient(url) as client:
            items = client.stream_images(images())
            assert (await anext(items)).index == 0
            more.set()
            assert [item.index async for item in items] == [1]
