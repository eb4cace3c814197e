"""Segmentation through windows in the core: cost, batches, answers, and who leaves."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from service import validation
from service.call import Call
from service.data_plane import DataPlane
from service.errors import InvalidRequest, RequestTooLarge
from service.messages import SegmentClass, SegmentImagesRequest
from service.monitoring.metrics import Metrics

if TYPE_CHECKING:
    from tests.service.conftest import FakeRuntime

MakePlane = Callable[..., DataPlane]
Encode = Callable[..., bytes]
DOG, SKY = SegmentClass(name="dog"), SegmentClass(name="sky")


def call(seconds: float = 20.0) -> Call:
    return Call(request_id="test", deadline=time.monotonic() + seconds)


def request(*images: bytes, **values: Any) -> SegmentImagesRequest:
    return SegmentImagesRequest(images=images, classes=(DOG, SKY), mode="slide", **values)


async def test_windows_are_computed_as_images_are_and_masks_have_the_images_sizes(
    make_plane: MakePlane, encode_image: Encode, runtime: "FakeRuntime", metrics: Metrics
) -> None:
    # Of 28 pixels, 21 apart: one window, two and four.
    images = [encode_image(size=size, seed=size[0]) for size in ((30, 30), (49, 28), (40, 110))]
    plane = make_plane()
    answer = await plane.segment_images(request(*images, include_scores=True), call())
    assert [s.labels_HW.shape for s in answer.segmentations] == [(30, 30), (28, 49), (110, 40)]
    assert runtime.num_images == 1 + 2 + 4
    batches = metrics.registry.get_sample_value("tipserve_batch_images_count") or 0
    assert batches < 1 + 2 + 4, "windows of one request share batches"
    for mask in answer.segmentations:
        assert mask.scores_HW is not None
        assert (mask.scores_HW >= 0.5).all(), "a share of two classes"
    for image, mask in zip(images, answer.segmentations, strict=True):
        (alone,) = (await plane.segment_images(request(image), call())).segmentations
        assert (alone.labels_HW == mask.labels_HW).mean() > 0.999


async def test_one_window_gives_the_labels_of_the_whole_image(
    make_plane: MakePlane, encode_image: Encode
) -> None:
    plane = make_plane()
    image = encode_image(size=(28, 28))
    (slid,) = (await plane.segment_images(request(image), call())).segmentations
    whole = SegmentImagesRequest(images=(image,), classes=(DOG, SKY))
    (seen,) = (await plane.segment_images(whole, call())).segmentations
    # A softmax changes no order, and the window's map is as large as the image's.
    np.testing.assert_array_equal(slid.labels_HW, seen.labels_HW)


async def test_a_request_is_admitted_by_the_patches_of_all_its_windows(
    make_plane: MakePlane, encode_image: Encode, runtime: "FakeRuntime"
) -> None:
    plane = make_plane()
    # Prompts are known, so that images alone have a cost; the queue holds 256 patches.
    await plane.segment_images(request(encode_image()), call())
    before = runtime.num_images
    long = encode_image(size=(28 + 21 * 6, 28))  # seven windows of four patches, 18 in a row
    whole = SegmentImagesRequest(images=(long,) * 10, classes=(DOG, SKY))
    await plane.segment_images(whole, call())
    assert runtime.num_images == before + 10
    with pytest.raises(RequestTooLarge, match="280 patches"):
        await plane.segment_images(request(*(long,) * 10), call())
    assert runtime.num_images == before + 10
    await plane.segment_images(request(*(long,) * 9), call())
    assert runtime.num_images == before + 10 + 9 * 7


async def test_a_finer_image_has_more_windows_and_a_coarser_one_smaller_ones(
    make_plane: MakePlane, encode_image: Encode, runtime: "FakeRuntime"
) -> None:
    plane = make_plane()
    await plane.segment_images(request(encode_image(), resolution=56, fit="squash"), call())
    assert runtime.num_images == 9
    await plane.segment_images(request(encode_image(), resolution=14, fit="squash"), call())
    assert runtime.num_images == 10
    with pytest.raises(RequestTooLarge, match="patches"):
        await plane.segment_images(request(encode_image(size=(4, 4000))), call())


async def test_windows_bound_what_the_model_sees_of_a_long_image(
    make_plane: MakePlane, encode_image: Encode
) -> None:
    plane = make_plane()  # the model sees at most 64 patches at once
    image = encode_image(size=(28 * 30, 28))
    with pytest.raises(InvalidRequest, match="patches"):
        await plane.segment_images(
            SegmentImagesRequest(images=(image,), classes=(DOG, SKY), fit="aspect"), call()
        )
    (mask,) = (await plane.segment_images(request(image), call())).segmentations
    assert mask.labels_HW.shape == (28, 28 * 30)


async def test_slide_mode_bounds_the_values_of_all_classes(
    make_plane: MakePlane, encode_image: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    plane = make_plane()
    monkeypatch.setattr(validation, "MAX_SLIDE_VALUES", 2 * 900)
    await plane.segment_images(request(encode_image(size=(30, 30))), call())
    with pytest.raises(RequestTooLarge, match="900 pixels for so many"):
        await plane.segment_images(request(encode_image(size=(30, 31))), call())
    whole = SegmentImagesRequest(images=(encode_image(size=(30, 31)),), classes=(DOG, SKY))
    await plane.segment_images(whole, call())


async def test_who_leaves_takes_all_windows_along(
    make_plane: MakePlane,
    encode_image: Encode,
    runtime: "FakeRuntime",
    entered: Callable[[], Awaitable[bool]],
    metrics: Metrics,
) -> None:
    plane = make_plane()
    await plane.segment_images(request(encode_image(size=(28, 28))), call())
    assert await entered()
    runtime.gate.clear()
    asked = request(encode_image(size=(28 + 21 * 7, 28)))
    leaving = asyncio.ensure_future(plane.segment_images(asked, call()))
    while runtime.entered.acquire(blocking=False):
        pass
    assert await entered()
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    async with asyncio.timeout(20):
        while runtime.num_interrupted == 0:
            await asyncio.sleep(0.001)
    runtime.gate.set()
    assert plane.gate.wait_idle(0)
    assert runtime.num_images == 1
