"""Pictures on their way: which error counts, and what a caller who leaves still sets in motion."""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest

from service.call import Call
from service.data_plane import DataPlane
from service.errors import InvalidRequest
from service.images.preparation import ImagePreparer
from service.messages import EmbedImagesRequest

LIMIT_S = 20.0
POOL_THREADS = 2  # of the fixture `pool`


def call() -> Call:
    return Call(request_id="test", deadline=time.monotonic() + LIMIT_S)


async def test_of_several_broken_pictures_the_first_is_told(
    make_plane: Callable[..., DataPlane], encode_image: Callable[..., bytes]
) -> None:
    good = encode_image()
    cut = good[: len(good) // 2]  # its header is whole, so that only decoding finds it
    with pytest.raises(InvalidRequest) as caught:
        await make_plane().embed_images(EmbedImagesRequest(images=(good, cut, good, cut)), call())
    assert caught.value.param == "images[1]"


async def test_who_leaves_while_pictures_are_decoded_spares_those_that_wait(
    make_plane: Callable[..., DataPlane],
    encode_image: Callable[..., bytes],
    pool: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoded: list[str] = []
    begun, release = threading.Semaphore(0), threading.Event()
    prepare = ImagePreparer.prepare

    def held(preparer: ImagePreparer, *given: Any, param: str) -> Any:
        decoded.append(param)
        begun.release()
        assert release.wait(LIMIT_S)
        return prepare(preparer, *given, param=param)

    monkeypatch.setattr(ImagePreparer, "prepare", held)
    request = EmbedImagesRequest(images=(encode_image(),) * 5)
    leaving = asyncio.ensure_future(make_plane().embed_images(request, call()))
    for _ in range(POOL_THREADS):
        assert await asyncio.to_thread(begun.acquire, timeout=LIMIT_S)
    leaving.cancel()
    with suppress(asyncio.CancelledError):
        await leaving
    release.set()
    await asyncio.to_thread(pool.shutdown)
    assert sorted(decoded) == ["images[0]", "images[1]"]
