"""The image pipeline: cancellation while decoding, waits for capacity, and a small pool."""

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from service.call import Call
from service.data_plane import DataPlane
from service.errors import InvalidRequest
from service.fair_pool import FairPool
from service.images import ImagePreparer
from service.messages import EmbedImagesRequest, SegmentClass, SegmentImagesRequest
from service.models import image_pipeline
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


LARGE = (1200, 900)  # a PNG whose decoding takes 4 bytes for each pixel
LARGE_BYTES = 4 * 1200 * 900


async def test_a_large_image_waits_for_memory_and_small_ones_do_not(
    make_plane: MakePlane, encode_image: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    plane = make_plane(max_work_memory_bytes=2 * LARGE_BYTES)
    seen: list[tuple[str, int]] = []
    prepare = ImagePreparer.prepare

    def record(preparer: ImagePreparer, *given: Any, param: str) -> Any:
        seen.append((threading.current_thread().name, plane.work_memory.num_bytes))
        return prepare(preparer, *given, param=param)

    monkeypatch.setattr(ImagePreparer, "prepare", record)
    other = call()
    await plane.work_memory.hold(other, LARGE_BYTES + 1)  # an answer that is not sent yet
    large = EmbedImagesRequest(images=(encode_image(size=LARGE),))
    small = EmbedImagesRequest(images=(encode_image(),))
    waiting = [asyncio.ensure_future(plane.embed_images(large, call())) for _ in range(4)]
    await until(lambda: plane.work_memory.is_contended)
    for _ in range(4):  # neither thread of the pool waits, nor the lane
        assert (await plane.embed_images(small, call())).embeddings
    assert len(seen) == 4
    leaving = waiting.pop()
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    other.free_memory()
    await asyncio.gather(*waiting)
    decoding = [(name, num_bytes) for name, num_bytes in seen if num_bytes > LARGE_BYTES + 1]
    assert len(seen) == 4 + 3
    assert all(num_bytes <= 2 * LARGE_BYTES for _, num_bytes in decoding)
    assert not any(name.startswith("lane") for name, _ in seen[4:])
    assert plane.work_memory.num_bytes == 0


async def test_idle_memory_is_freed_before_a_large_image_is_decoded(
    make_plane: MakePlane,
    encode_image: Encode,
    runtime: FakeRuntime,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[str] = []
    prepare = ImagePreparer.prepare

    def noted(*given: Any, **named: Any) -> Any:
        done.append("decode")
        return prepare(*given, **named)

    monkeypatch.setattr(ImagePreparer, "prepare", noted)
    monkeypatch.setattr(runtime, "release_idle_memory", lambda: done.append("release"))
    monkeypatch.setattr(image_pipeline, "trim", lambda: done.append("trim"))
    monkeypatch.setattr(image_pipeline, "TRIMMED_BYTES", LARGE_BYTES - 1)
    monkeypatch.setattr(image_pipeline, "RELEASED_BYTES", LARGE_BYTES)
    plane = make_plane()
    done.clear()  # the start releases it too
    small, large = encode_image(), encode_image(size=LARGE)
    for image in (small, large, small):
        await plane.embed_images(EmbedImagesRequest(images=(image,)), call())
    assert done == ["decode", "trim", "decode", "decode"]
    done.clear()
    await plane.work_memory.hold(call(), 1)  # of another request
    for image in (small, large):
        await plane.embed_images(EmbedImagesRequest(images=(image,)), call())
    assert done == ["decode", "release", "trim", "decode"]


async def test_idle_memory_is_freed_again_before_a_large_answer_is_made(
    make_plane: MakePlane,
    encode_image: Encode,
    runtime: FakeRuntime,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    released: list[int] = []
    monkeypatch.setattr(runtime, "release_idle_memory", lambda: released.append(runtime.num_images))
    monkeypatch.setattr(image_pipeline, "TRIMMED_BYTES", LARGE_BYTES // 8)
    monkeypatch.setattr(image_pipeline, "RELEASED_BYTES", LARGE_BYTES // 8)
    plane = make_plane()
    released.clear()
    before = runtime.num_images
    image = encode_image(size=LARGE)
    classes = (SegmentClass(name="dog"),)
    await plane.segment_images(SegmentImagesRequest(images=(image,), classes=classes), call())
    assert released == [before, before + 1]
    released.clear()
    await plane.embed_images(EmbedImagesRequest(images=(image,)), call())  # a small answer
    assert released == [before + 1]


async def test_memory_of_a_caller_who_leaves_is_free_once_its_image_is_decoded(
    make_plane: MakePlane, encode_image: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    plane = make_plane(max_work_memory_bytes=10 * LARGE_BYTES)
    begun, release = threading.Event(), threading.Event()
    prepare = ImagePreparer.prepare

    def held(preparer: ImagePreparer, *given: Any, param: str) -> Any:
        begun.set()
        assert release.wait(WAIT_S)
        return prepare(preparer, *given, param=param)

    monkeypatch.setattr(ImagePreparer, "prepare", held)
    request = SegmentImagesRequest(
        images=(encode_image(size=LARGE),), classes=(SegmentClass(name="dog"),)
    )
    left = call()
    leaving = asyncio.ensure_future(plane.segment_images(request, left))
    assert await asyncio.to_thread(begun.wait, WAIT_S)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    left.free_memory()
    assert plane.work_memory.num_bytes == LARGE_BYTES, "its pixels are still in memory"
    release.set()
    await until(lambda: plane.work_memory.num_bytes == 0)


@pytest.mark.parametrize(("share", "most"), [(1, 1), (2, 2), (3, POOL_THREADS)])
@pytest.mark.parametrize("fails", [False, True])
async def test_images_of_a_request_are_decoded_at_once_as_far_as_one_may_take_the_memory(
    make_plane: MakePlane,
    encode_image: Encode,
    monkeypatch: pytest.MonkeyPatch,
    share: int,
    most: int,
    fails: bool,
) -> None:
    plane = make_plane(max_images_per_request=8, max_work_memory_bytes=10**9)
    num_bytes = plane.image_limits.max_decoding_bytes // share
    measure, prepare = ImagePreparer.measure, ImagePreparer.prepare
    running: set[str] = set()
    seen: list[tuple[int, int]] = []
    together = threading.Barrier(most)

    def large(preparer: ImagePreparer, *given: Any, param: str) -> Any:
        size_hw, num_patches, _ = measure(preparer, *given, param=param)
        return size_hw, num_patches, num_bytes

    def count(preparer: ImagePreparer, *given: Any, param: str) -> Any:
        running.add(param)
        if param in {"images[0]", "images[1]"}:
            together.wait(WAIT_S)
        seen.append((len(running), plane.work_memory.num_bytes))
        try:
            if fails and param in {"images[3]", "images[5]"}:
                raise InvalidRequest(f"{param}: broken.")
            return prepare(preparer, *given, param=param)
        finally:
            running.remove(param)

    monkeypatch.setattr(ImagePreparer, "measure", large)
    monkeypatch.setattr(ImagePreparer, "prepare", count)
    request = EmbedImagesRequest(images=(encode_image(),) * 8)
    if fails:
        with pytest.raises(InvalidRequest, match=r"images\[3\]"):
            await plane.embed_images(request, call())
        assert not running
    else:
        assert len((await plane.embed_images(request, call())).embeddings) == 8
        assert len(seen) == 8
    assert max(seen) == (most, most * num_bytes)
    assert plane.work_memory.num_bytes == 0
