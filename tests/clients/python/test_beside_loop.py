"""While an image is packed, the caller's event loop goes on."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.server import Server
from tests.clients.python.comparison import assert_equal
from tipserve_client import AsyncClient
from tipserve_client.concurrency import async_pack

Serving = Callable[..., AbstractAsyncContextManager[Server]]
Encode = Callable[..., bytes]
LIMIT_S = 20.0


class SlowImage:
    """As Pillow's, but that it can be saved only once the event loop has had its turn."""

    def __init__(self, encoded: bytes) -> None:
        self._encoded = encoded
        self.is_begun, self.may_end = threading.Event(), threading.Event()

    def save(self, fp: Any, format: str) -> None:
        self.is_begun.set()
        assert self.may_end.wait(LIMIT_S), f"nobody let it be saved as {format}"
        fp.write(self._encoded)


async def let_save(image: SlowImage) -> None:
    """What the loop has to do meanwhile."""
    async with asyncio.timeout(LIMIT_S):
        while not image.is_begun.is_set():
            await asyncio.sleep(0.001)
    image.may_end.set()


async def embed(client: AsyncClient, image: Any, other: bytes) -> list[Any]:
    return list(await client.embed_images([other, image]))


async def stream(client: AsyncClient, image: Any, other: bytes) -> list[Any]:
    return [item.result() async for item in client.stream_images([other, image])]


async def stream_as_they_come(client: AsyncClient, image: Any, other: bytes) -> list[Any]:
    async def images() -> AsyncIterator[Any]:
        yield other
        yield image

    return [item.result() async for item in client.stream_images(images())]


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize("ask", [embed, stream, stream_as_they_come])
async def test_the_loop_goes_on_while_a_image_is_packed(
    serving: Serving,
    encode_image: Encode,
    protocol: str,
    ask: Callable[[AsyncClient, Any, bytes], Awaitable[list[Any]]],
) -> None:
    encoded, other = encode_image(seed=1), encode_image(seed=2)
    slow = SlowImage(encoded)
    async with serving() as server:
        url = f"{protocol}://127.0.0.1:{server.ports[protocol]}"
        async with AsyncClient(url) as client:
            saving = asyncio.create_task(let_save(slow))
            answers = await ask(client, slow, other)
            await saving
            assert_equal(answers, await ask(client, encoded, other))


async def test_what_is_sent_as_it_is_needs_no_thread() -> None:
    here = threading.get_ident()
    assert await async_pack(threading.get_ident, [b"a", "b.jpg", Path("c.jpg")]) == here
    pixels = np.zeros((2, 2, 3), np.uint8)
    assert await async_pack(threading.get_ident, [b"a", pixels]) != here
