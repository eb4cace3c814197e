"""Streams of images: order, bounds, failures of the server and of single images."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from itertools import repeat
from typing import Any

import grpc
import numpy as np
import pytest

from service.server import Server
from tests.clients.python.conftest import Asking, connected, inflight, until
from tests.service.conftest import Encode, Serving
from tipserve_client import AsyncClient, Retry, TipserveError, Unavailable
from tipserve_client.generated import embed_pb2, stream_pb2, tensor_pb2
from tipserve_client.generated.encoder_service_pb2_grpc import (
    EncoderServiceServicer,
    add_EncoderServiceServicer_to_server,
)


class UnreliableServicer(EncoderServiceServicer):
    """A server that answers some requests of each stream, and then ends it or refuses one."""

    def __init__(self, *lives: tuple[int, str]) -> None:
        self._lives = iter(lives)
        self.seen: list[list[str]] = []

    async def Stream(self, requests: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """Answer the requests of one stream."""
        left, ending = next(self._lives)
        seen: list[str] = []
        self.seen.append(seen)
        async for request in requests:
            seen.append(request.id)
            if left == 0 and ending == "drain":
                await context.abort(grpc.StatusCode.UNAVAILABLE, "The server is draining.")
            if left == 0 and ending == "full":
                error = stream_pb2.StreamError(code=8, reason="body_memory_full", message="full")
                error.retry_delay.FromMilliseconds(1)
                yield stream_pb2.StreamResponse(id=request.id, error=error)
                continue
            left -= 1
            tensor = tensor_pb2.Tensor(shape=[1], data_type="DATA_TYPE_FLOAT32", data=b"\0\0\0\0")
            embedded = embed_pb2.EmbedImagesResponse(embeddings=[{"cls1": tensor}])
            yield stream_pb2.StreamResponse(id=request.id, embed_images=embedded)


@asynccontextmanager
async def standing_in(servicer: UnreliableServicer) -> AsyncIterator[str]:
    server = grpc.aio.server()
    add_EncoderServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"grpc://127.0.0.1:{port}"
    await server.stop(None)


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("ending", ["drain", "full"])
async def test_images_without_an_answer_are_sent_again_and_answered_once(
    is_async: bool, ending: str
) -> None:
    servicer = UnreliableServicer((3, ending), (0, ending), (5, ending), (1000, ending))
    retry = Retry(first_pause_s=0.01)

    images = [b"image"] * 20
    async with standing_in(servicer) as url, connected(url, is_async, retry=retry) as client:
        found = [item.index async for item in client.stream_images(images, window=6)]
    assert found == list(range(20))
    begins = [int(seen[0]) for seen in servicer.seen]
    assert len(begins) == 4
    assert begins == sorted(begins)


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_slow_caller_uses_up_no_attempt(is_async: bool) -> None:
    servicer = UnreliableServicer((1, "drain"), (1, "drain"), *[(1000, "drain")] * 9)
    retry = Retry(first_pause_s=0.001)
    now, found = 0.0, []
    async with standing_in(servicer) as url, connected(url, is_async, retry=retry) as client:
        getattr(client, "wrapped", client)._clock = lambda: now
        async for item in client.stream_images([b"image"] * 4, window=2):
            found.append(item.index)
            now += 100
    assert found == [0, 1, 2, 3]


async def test_a_server_that_never_recovers_ends_the_stream() -> None:
    servicer = UnreliableServicer(*[(0, "drain")] * 9)
    retry = Retry(first_pause_s=0.001, max_attempts=4)
    async with standing_in(servicer) as url, AsyncClient(url, retry=retry) as client:
        with pytest.raises(Unavailable):
            [item async for item in client.stream_images([b"image"])]
    assert len(servicer.seen) <= 4


@pytest.mark.parametrize("is_async", [False, True])
async def test_an_image_that_is_never_sent_ends_no_stream(is_async: bool) -> None:
    servicer = UnreliableServicer((1000, "drain"), (1000, "drain"))

    def images() -> Iterator[Any]:
        for image in [b"image", "/no/such/file.jpg"] * 30:
            time.sleep(0.003)  # both the sender and the reader of answers wait for it
            yield image

    async with standing_in(servicer) as url, connected(url, is_async) as client:
        found = [item.index async for item in client.stream_images(images(), window=6)]
    assert found == list(range(60))
    assert [len(seen) for seen in servicer.seen] == [30]


async def test_a_stream_answers_in_order_and_outlives_bad_images(
    serving: Serving, encode_image: Encode, asking: Asking
) -> None:
    turns = random.Random(0)
    images = [encode_image(seed=seed, size=(turns.choice((30, 90, 300)), 40)) for seed in range(25)]
    sent: list[Any] = list(images)
    sent[7], sent[20] = b"no image", "/no/such/file.jpg"
    async with serving(lanes=1, pool_threads=4) as server, asking.client(server) as client:
        items = [item async for item in client.stream_images(sent, outputs="cls2", window=9)]
        alone = await client.embed_images([images[3], images[24]], outputs="cls2")
    assert [item.index for item in items] == list(range(25))
    codes = {item.index: item.error.code for item in items if item.error}
    assert codes == {7: "invalid_image", 20: "unreadable_file"}
    with pytest.raises(TipserveError):
        items[7].result()
    np.testing.assert_allclose(items[3].result().cls2, alone[0].cls2, rtol=1e-5)
    np.testing.assert_allclose(items[24].result().cls2, alone[1].cls2, rtol=1e-5)


async def test_a_stream_reads_ahead_no_more_than_its_window(
    encode_image: Encode, client: Any
) -> None:
    num_taken = num_answered = furthest = 0

    def images() -> Iterator[bytes]:
        nonlocal num_taken, furthest
        for image in [encode_image()] * 30:
            num_taken += 1
            furthest = max(furthest, num_taken - num_answered)
            yield image

    async for _ in client.stream_images(images(), window=5):
        num_answered += 1
    assert num_answered == 30
    assert furthest <= 5 + 2  # one that waits for room, and one that is yielded


async def test_an_abandoned_stream_ends_on_the_server(
    encode_image: Encode, server: Server, client: Any
) -> None:
    async with aclosing(client.stream_images(repeat(encode_image()))) as items:
        async for item in items:
            if item.index == 10:
                break
    await until(lambda: inflight(server) == 0)
    assert len(await client.embed_images(encode_image())) == 1


async def test_an_error_of_the_callers_iterator_is_raised(
    encode_image: Encode, client: Any
) -> None:
    def images() -> Iterator[bytes]:
        yield encode_image()
        raise KeyError("of the caller")

    items = client.stream_images(images())
    assert (await anext(items)).index == 0
    with pytest.raises(KeyError, match="of the caller"):
        await anext(items)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
async def test_a_stream_answers_before_the_next_image_is_there(
    serving: Serving, encode_image: Encode, protocol: str
) -> None:
    more = asyncio.Event()

    async def images() -> AsyncIterator[bytes]:
        yield encode_image()
        await more.wait()
        yield encode_image(seed=1)

    async with serving() as server, Asking(protocol, is_async=True).client(server) as client:
        items = client.stream_images(images())
        assert (await anext(items)).index == 0
        more.set()
        assert [item.index async for item in items] == [1]
