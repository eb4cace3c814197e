"""The image pipeline: cancellation while decoding, waits for capacity, and a small pool."""

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from typing import Any

import pytest

from model.image_codec import DecodingMemory
from service.call import Call
from service.data_plane import DataPlane
from service.fair_pool import FairPool
from service.images import ImagePreparer
from service.messages import EmbedImagesRequest
from tests.service.conftest import WAIT_S, Encode, FakeRuntime, until

MakePlane = Callable[..., DataPlane]
POOL_THREADS = 2  # of the fixture `pool`


def call(*, waits_for_capacity: bool = False) -> Call:
    deadline = time.monotonic() + WAIT_S
    return Call(request_id="test", deadline=deadline, waits_for_capacity=waits_for_capacity)


async def test_a_request_cancelled_during_decoding_does_not_decode_the_other_images(
    make_plane: MakePlane,
    encode_image: Encode,
    pool: FairPool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoded: list[str] = []
    begun, release = threading.Semaphore(0), threading.Event()
    prepare = ImagePreparer.prepare

    def held(preparer: ImagePreparer, *given: Any, param: str) -> Any:
        decoded.append(param)
        begun.release()
        assert release.wait(WAIT_S)
        return prepare(preparer, *given, param=param)

    monkeypatch.setattr(ImagePreparer, "prepare", held)
    request = EmbedImagesRequest(images=(encode_image(),) * 5)
    leaving = asyncio.ensure_future(make_plane().embed_images(request, call()))
    for _ in range(POOL_THREADS):
        assert await asyncio.to_thread(begun.acquire, timeout=WAIT_S)
    leaving.cancel()
    with suppress(asyncio.CancelledError):
        await leaving
    release.set()
    await asyncio.to_thread(pool.shutdown)
    assert sorted(decoded) == ["images[0]", "images[1]"]


async def test_a_stream_request_whose_image_is_larger_than_estimated_waits_for_capacity(
    make_plane: MakePlane,
    encode_image: Encode,
    runtime: FakeRuntime,
) -> None:
    plane = make_plane()
    admission = plane.models.models()[0].admission
    runtime.gate.clear()
    large = EmbedImagesRequest(images=(encode_image(),) * 3, resolution=112)  # 64 patches each
    small = EmbedImagesRequest(images=(encode_image(),) * 14)  # 4 each
    before = [asyncio.ensure_future(plane.embed_images(one, call())) for one in (large, small)]
    await until(lambda: admission.cost == 3 * 64 + 14 * 4)  # of the 256 that fit
    wide = EmbedImagesRequest(images=(encode_image(size=(84, 28)),), fit="aspect")
    waiting = asyncio.ensure_future(plane.embed_images(wide, call(waits_for_capacity=True)))
    await until(lambda: waiting.done() or bool(admission._streams._waiting))
    assert [waiter.cost for waiter in admission._streams._waiting] == [12]
    runtime.gate.set()
    assert len((await waiting).embeddings) == 1
    await asyncio.gather(*before)


async def test_many_requests_of_many_images_do_not_block_a_small_pool(
    make_plane: MakePlane, encode_image: Encode
) -> None:
    plane = make_plane(max_images_per_request=8)
    request = EmbedImagesRequest(images=tuple(encode_image(seed=i) for i in range(8)))
    async with asyncio.timeout(WAIT_S):
        answers = await asyncio.gather(*(plane.embed_images(request, call()) for _ in range(8)))
    assert [len(answer.embeddings) for answer in answers] == [8] * 8


@pytest.mark.parametrize(
    ("num_images", "size", "num_others", "threads"),
    [
        (1, (40, 30), 0, {"lane-0"}),
        (1, (40, 30), 1, {"pool"}),  # more requests than lanes
        (1, (1200, 900), 0, {"pool"}),
        (2, (40, 30), 0, {"pool"}),
    ],
)
async def test_an_idle_lane_decodes_a_small_image(
    make_plane: MakePlane,
    encode_image: Encode,
    monkeypatch: pytest.MonkeyPatch,
    num_images: int,
    size: tuple[int, int],
    num_others: int,
    threads: set[str],
) -> None:
    seen: set[str] = set()
    prepare = ImagePreparer.prepare

    def record(preparer: ImagePreparer, *given: Any, param: str) -> Any:
        name = threading.current_thread().name
        seen.add(name if name.startswith("lane") else "pool")
        return prepare(preparer, *given, param=param)

    monkeypatch.setattr(ImagePreparer, "prepare", record)
    plane = make_plane()
    model = plane.models.models()[0]
    for _ in range(num_others):
        await model.admission.admit(1, call())
    batcher = model._batcher
    image = encode_image("JPEG", size=size, quality=1)
    await until(lambda: batcher.queue._num_idle == 1)
    await plane.embed_images(EmbedImagesRequest(images=(image,) * num_images), call())
    assert seen == threads


async def test_no_lane_waits_for_the_memory_of_other_images(
    make_plane: MakePlane, encode_image: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []
    held = DecodingMemory.hold

    def record(memory: DecodingMemory, num_bytes: int) -> AbstractContextManager[None]:
        threads.append(threading.current_thread().name)
        return held(memory, num_bytes)

    monkeypatch.setattr(DecodingMemory, "hold", record)
    plane = make_plane()
    batcher = plane.models.models()[0]._batcher
    memory = plane._images._preparer._memory
    request = EmbedImagesRequest(images=(encode_image(),))
    await until(lambda: batcher.queue._num_idle == 1)
    with held(memory, memory._max_bytes):
        answer = asyncio.ensure_future(plane.embed_images(request, call()))
        await until(lambda: bool(threads))
        assert not memory.has_room(1)
    await answer
    assert not threads[0].startswith("lane")
