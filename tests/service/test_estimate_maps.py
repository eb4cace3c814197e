"""Depth and normals through the core: answers, what is missing, and what leaves the queue."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from model.dense_maps import MapTask
from service.call import Call
from service.data_plane import DataPlane
from service.errors import (
    InternalError,
    InvalidRequest,
    NotSupported,
    RequestTooLarge,
    ServiceError,
)
from service.messages import EmbedImagesRequest, EstimateMapsRequest

if TYPE_CHECKING:
    from tests.service.conftest import FakeRuntime

Encode = Callable[..., bytes]
BOTH = pytest.mark.parametrize("task", ["depth", "normals"])


def call(seconds: float = 20.0) -> Call:
    return Call(request_id="test", deadline=time.monotonic() + seconds)


@BOTH
async def test_a_list_equals_its_items_and_maps_have_the_images_sizes(
    make_plane: Callable[..., DataPlane], encode_image: Encode, task: MapTask
) -> None:
    plane = make_plane()
    images = tuple(encode_image(seed=s, size=(20 + 9 * s, 20)) for s in range(5))
    together = await plane.estimate_maps(EstimateMapsRequest(task=task, images=images), call())
    for index, image in enumerate(images):
        ask = call()
        alone = await plane.estimate_maps(EstimateMapsRequest(task=task, images=(image,)), ask)
        assert list(ask.stages) == ["admit", "decode", "queue", "run", "post"]
        np.testing.assert_allclose(together.maps[index], alone.maps[0], atol=1e-6)
        assert together.maps[index].shape[:2] == (20, 20 + 9 * index)
        if task == "normals":
            assert together.maps[index].shape[2:] == (3,)
            np.testing.assert_allclose(np.linalg.norm(alone.maps[0], axis=-1), 1, atol=1e-5)


@BOTH
async def test_the_model_s_own_size_is_eight_to_a_patch(
    make_plane: Callable[..., DataPlane], encode_image: Encode, task: MapTask
) -> None:
    images = (encode_image(size=(56, 28)),)
    request = EstimateMapsRequest(task=task, images=images, size="model", resolution=28)
    (raw,) = (await make_plane().estimate_maps(request, call())).maps
    assert raw.shape[:2] == (2 * 8, 4 * 8)


@BOTH
async def test_a_package_without_the_head_says_what_is_missing(
    make_plane: Callable[..., DataPlane],
    encode_image: Encode,
    runtime: "FakeRuntime",
    task: MapTask,
) -> None:
    runtime.tasks = ("segmentation",)
    plane = make_plane()
    with pytest.raises(NotSupported, match=f"{task}.* runtime fake") as caught:
        await plane.estimate_maps(EstimateMapsRequest(task=task, images=(b"x",)), call())
    assert (caught.value.code, caught.value.param) == ("not_supported", "model")
    assert task not in plane.get_model(None).outputs
    embedded = await plane.embed_images(EmbedImagesRequest(images=(encode_image(),)), call())
    assert len(embedded.embeddings) == 1


def test_what_is_served_is_told(make_plane: Callable[..., DataPlane]) -> None:
    outputs = make_plane().get_model(None).outputs
    assert outputs == ("patches", "values", "cls1", "cls2", "text", "depth", "normals")


@BOTH
@pytest.mark.parametrize(
    ("change", "error", "param"),
    [
        ({"images": ()}, InvalidRequest, "images"),
        ({"images": (b"x",) * 33}, RequestTooLarge, "images"),
        ({"images": (b"x",)}, InvalidRequest, "images[0]"),
        ({"resolution": 15}, InvalidRequest, "resolution"),
    ],
)
async def test_what_cannot_be_answered_names_its_field(
    make_plane: Callable[..., DataPlane],
    encode_image: Encode,
    runtime: "FakeRuntime",
    task: MapTask,
    change: dict[str, Any],
    error: type[ServiceError],
    param: str,
) -> None:
    request = EstimateMapsRequest(**{"task": task, "images": (encode_image(),)} | change)
    with pytest.raises(error) as caught:
        await make_plane().estimate_maps(request, call())
    assert caught.value.param == param
    assert runtime.num_maps == 0


async def test_maps_that_would_fill_the_memory_are_refused(
    make_plane: Callable[..., DataPlane], encode_image: Encode, runtime: "FakeRuntime"
) -> None:
    plane = make_plane(max_image_pixels=2000)
    images = (encode_image(size=(40, 30)),) * 2
    with pytest.raises(RequestTooLarge) as caught:
        await plane.estimate_maps(EstimateMapsRequest(task="normals", images=images), call())
    assert caught.value.param == "size"
    assert runtime.num_maps == 0
    small = EstimateMapsRequest(task="normals", images=images, size="model")
    assert len((await plane.estimate_maps(small, call())).maps) == 2


@pytest.mark.parametrize("fault", ["raise", "short"])
async def test_a_broken_head_is_an_internal_error_and_service_goes_on(
    make_plane: Callable[..., DataPlane], encode_image: Encode, runtime: "FakeRuntime", fault: Any
) -> None:
    plane = make_plane()
    request = EstimateMapsRequest(task="depth", images=(encode_image(),) * 2)
    runtime.fault = fault
    with pytest.raises(InternalError):
        await plane.estimate_maps(request, call())
    runtime.fault = ""
    assert len((await plane.estimate_maps(request, call())).maps) == 2


@BOTH
async def test_a_caller_who_leaves_while_the_head_runs_frees_the_lane(
    make_plane: Callable[..., DataPlane],
    encode_image: Encode,
    runtime: "FakeRuntime",
    entered: Callable[[], Awaitable[bool]],
    task: MapTask,
) -> None:
    plane = make_plane()
    runtime.gate.clear()
    request = EstimateMapsRequest(task=task, images=(encode_image(),))
    running = asyncio.ensure_future(plane.estimate_maps(request, call()))
    assert await entered()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    async with asyncio.timeout(20):
        while runtime.num_interrupted == 0:
            await asyncio.sleep(0.001)
    assert plane.gate.wait_idle(0)
    assert runtime.num_maps == 0
