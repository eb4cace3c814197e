"""The core over a fake runtime: answers, order, costs, deadlines, cancellation."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from service.call import Call
from service.data_plane import DataPlane
from service.errors import (
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    RequestTooLarge,
    ServiceError,
    Unavailable,
)
from service.messages import (
    EmbedImagesRequest,
    EmbedTextsRequest,
    SegmentClass,
    SegmentImagesRequest,
)
from service.models.loading import request_limits
from service.models.registry import ModelRegistry
from service.monitoring.metrics import Metrics
from service.request_gate import RequestGate
from service.waiting import SLICE_S, Steps

if TYPE_CHECKING:
    from tests.service.conftest import FakeRuntime

DOG, SKY = SegmentClass(name="dog"), SegmentClass(name="sky", prompts=("sky", "blue sky"))
Encode = Callable[..., bytes]
Entered = Callable[[], Awaitable[bool]]


def call(seconds: float = 20.0) -> Call:
    return Call(request_id="test", deadline=time.monotonic() + seconds)


@pytest.fixture
def plane(
    load_fake: Any,
    make_settings: Any,
    metrics: Metrics,
    pool: ThreadPoolExecutor,
    runtime: "FakeRuntime",
) -> Any:
    settings = make_settings(max_queue_patches=256, max_batch_patches=64, max_images_per_request=8)
    gate = RequestGate(metrics)
    made = DataPlane(
        gate,
        ModelRegistry(metrics),
        limits=request_limits(settings),
        max_image_patches=64,
        pool=pool,
    )
    served = load_fake(settings, metrics)
    made.models.put(served)
    gate.open()
    yield made
    runtime.gate.set()
    served.close(10)
    pool.shutdown()


def sample(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"tipserve_{name}", labels)


async def test_images_come_back_in_order_and_a_list_equals_its_items(
    plane: DataPlane, encode_image: Encode
) -> None:
    images = tuple(encode_image(seed=s, size=(20 + 9 * s, 20)) for s in range(5))
    request = {"outputs": ("patches", "cls1"), "fit": "aspect"}
    together = await plane.embed_images(EmbedImagesRequest(images=images, **request), call())  # type: ignore[arg-type]
    for image, outputs in zip(images, together.embeddings, strict=True):
        alone = await plane.embed_images(EmbedImagesRequest(images=(image,), **request), call())  # type: ignore[arg-type]
        assert outputs.keys() == {"patches", "cls1"}
        np.testing.assert_allclose(outputs["patches"], alone.embeddings[0]["patches"], rtol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(outputs["cls1"]), 1, rtol=1e-5)
    assert together.embeddings[0]["patches"].shape == (2, 2, 8)
    assert together.embeddings[4]["patches"].shape == (2, 6, 8)


async def test_a_mask_has_the_images_size(plane: DataPlane, encode_image: Encode) -> None:
    request = SegmentImagesRequest(images=(encode_image(size=(51, 37)),), classes=(DOG, SKY))
    ask = call()
    answer = await plane.segment_images(request, ask)
    (mask,) = answer.segmentations
    assert mask.labels_HW.shape == (37, 51)
    assert set(np.unique(mask.labels_HW)) <= {1, 2}
    assert answer.classes == ("dog", "sky")
    assert sum(mask.area_shares) == pytest.approx(1)
    assert set(ask.stages) == {"admit", "decode", "queue", "run", "post"}


@pytest.mark.parametrize(("with_scores", "most"), [(False, 3), (True, 1)])
async def test_masks_that_would_fill_the_memory_are_refused(
    make_plane: Callable[..., DataPlane],
    encode_image: Encode,
    runtime: "FakeRuntime",
    with_scores: bool,
    most: int,
) -> None:
    plane = make_plane(max_image_pixels=2000)
    for count in (most + 1, most):
        request = SegmentImagesRequest(
            images=(encode_image(size=(40, 30)),) * count,
            classes=(DOG,),
            include_scores=with_scores,
        )
        if count > most:
            with pytest.raises(RequestTooLarge, match=f"{1200 * count} pixels") as caught:
                await plane.segment_images(request, call())
            assert (caught.value.param, runtime.num_images) == ("images", 0)
        else:
            assert len((await plane.segment_images(request, call())).segmentations) == most


async def test_known_class_names_cost_no_pass_over_the_text_tower(
    plane: DataPlane, encode_image: Encode, runtime: "FakeRuntime"
) -> None:
    request = SegmentImagesRequest(images=(encode_image(),), classes=(DOG, SKY), templates="tcl")
    first = await plane.segment_images(request, call())
    assert runtime.num_texts == 27
    second = await plane.segment_images(request, call())
    assert runtime.num_texts == 27
    np.testing.assert_array_equal(
        first.segmentations[0].labels_HW, second.segmentations[0].labels_HW
    )


async def test_texts_are_averaged_over_their_templates(plane: DataPlane) -> None:
    texts = ("dog", "cat", "dog")
    answer = await plane.embed_texts(EmbedTextsRequest(texts=texts, templates="tcl"), call())
    assert answer.embeddings_TD.shape == (3, 8)
    np.testing.assert_array_equal(answer.embeddings_TD[0], answer.embeddings_TD[2])
    np.testing.assert_allclose(np.linalg.norm(answer.embeddings_TD, axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "error", "param"),
    [
        ({"images": ()}, InvalidRequest, "images"),
        ({"images": (b"x",) * 9}, RequestTooLarge, "images"),
        ({"images": "good,bad"}, InvalidRequest, "images[1]"),
        ({"images": "good,cut"}, InvalidRequest, "images[1]"),
        ({"images": "good,long"}, InvalidRequest, "images[1]"),
        ({"outputs": ("depth",)}, InvalidRequest, "outputs[0]"),
        ({"resolution": 15}, InvalidRequest, "resolution"),
        ({"model": "other"}, ModelNotFound, "model"),
        ({"images": ",".join(["good"] * 8), "resolution": 112}, RequestTooLarge, None),
    ],
)
async def test_what_cannot_be_answered_names_its_field(
    plane: DataPlane,
    encode_image: Encode,
    runtime: "FakeRuntime",
    change: dict[str, Any],
    error: type[ServiceError],
    param: str | None,
) -> None:
    kinds = {
        "good": encode_image(),
        "bad": b"no image",
        "cut": encode_image("JPEG", size=(200, 200))[:900],
        "long": encode_image(size=(400, 2)),
    }
    if isinstance(change.get("images"), str):
        change = {**change, "images": tuple(kinds[k] for k in change["images"].split(","))}
    request = EmbedImagesRequest(**{"images": (kinds["good"],) * 2, "fit": "aspect"} | change)
    with pytest.raises(error) as caught:
        await plane.embed_images(request, call())
    assert caught.value.param == param
    assert runtime.num_images == 0
    assert plane.gate.wait_idle(0)


async def test_a_prompt_without_a_token_names_its_class(
    plane: DataPlane, encode_image: Encode
) -> None:
    classes = (DOG, SegmentClass(name="\u200b"))
    request = SegmentImagesRequest(images=(encode_image(),), classes=classes)
    with pytest.raises(InvalidRequest) as caught:
        await plane.segment_images(request, call())
    assert (caught.value.code, caught.value.param) == ("blank_text", "classes[1]")


async def test_one_input_and_a_list_get_the_same_overload_answer(
    plane: DataPlane, encode_image: Encode, runtime: "FakeRuntime", entered: Entered
) -> None:
    runtime.gate.clear()
    big = EmbedImagesRequest(images=(encode_image(),) * 4, resolution=112)
    running = asyncio.ensure_future(plane.embed_images(big, call()))
    assert await entered()
    for count in (1, 3):
        request = EmbedImagesRequest(images=(encode_image(),) * count)
        with pytest.raises(Overloaded) as caught:
            await plane.embed_images(request, call())
        assert caught.value.retry_after_s
    runtime.gate.set()
    assert len((await running).embeddings) == 4


async def test_a_caller_who_leaves_frees_what_waits(
    plane: DataPlane,
    encode_image: Encode,
    runtime: "FakeRuntime",
    entered: Entered,
    metrics: Metrics,
) -> None:
    runtime.gate.clear()
    one = EmbedImagesRequest(images=(encode_image(),))
    running = asyncio.ensure_future(plane.embed_images(one, call()))
    assert await entered()
    leaving = asyncio.ensure_future(plane.embed_images(one, call()))
    staying = asyncio.ensure_future(plane.embed_images(one, call()))
    while sum(d for d in queue_depths(metrics)) < 2:
        await asyncio.sleep(0)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert sample(metrics, "abandoned_total", reason="cancelled") == 1
    runtime.gate.set()
    await asyncio.gather(running, staying)
    assert runtime.num_images == 2
    assert plane.gate.wait_idle(0)


def queue_depths(metrics: Metrics) -> list[float]:
    families = {f.name: f for f in metrics.registry.collect()}
    return [s.value for s in families["tipserve_queue_depth"].samples]


async def test_a_deadline_ends_the_wait(
    plane: DataPlane, encode_image: Encode, runtime: "FakeRuntime"
) -> None:
    runtime.gate.clear()
    with pytest.raises(DeadlineExceeded):
        await plane.embed_images(EmbedImagesRequest(images=(encode_image(),)), call(0.05))
    assert plane.gate.wait_idle(0)


@pytest.mark.parametrize("fault", ["raise", "short"])
async def test_a_broken_runtime_is_an_internal_error_and_service_goes_on(
    plane: DataPlane, encode_image: Encode, runtime: "FakeRuntime", fault: Any
) -> None:
    runtime.fault = fault
    request = EmbedImagesRequest(images=(encode_image(),) * 2)
    with pytest.raises(InternalError):
        await plane.embed_images(request, call())
    runtime.fault = ""
    assert len((await plane.embed_images(request, call())).embeddings) == 2


async def test_a_starting_server_has_no_models(
    metrics: Metrics, pool: ThreadPoolExecutor, make_settings: Any
) -> None:
    limits = request_limits(make_settings())
    plane = DataPlane(
        RequestGate(metrics), ModelRegistry(metrics), limits=limits, max_image_patches=1, pool=pool
    )
    with pytest.raises(Unavailable):
        plane.list_models()
    with pytest.raises(Unavailable):
        plane.get_model(None)
    with pytest.raises(Unavailable):
        await plane.embed_texts(EmbedTextsRequest(texts=("a",)), call())


async def test_models_can_be_asked_for_while_draining(plane: DataPlane) -> None:
    plane.gate.drain()
    assert plane.get_model("fake").manifest.name == "fake"
    assert [info.runtime for info in plane.list_models()] == ["fake"]


class Work:
    """Steps that have no end of their own."""

    num_steps = 0

    def steps(self) -> Steps[None]:
        while True:
            self.num_steps += 1
            yield
            time.sleep(0.001)


async def has_stopped(work: Work) -> bool:
    async with asyncio.timeout(20):
        while True:
            before = work.num_steps
            await asyncio.sleep(4 * SLICE_S)
            if work.num_steps == before:
                return True


async def test_long_work_leaves_the_pool_to_other_work_and_ends_when_its_caller_leaves(
    plane: DataPlane,
) -> None:
    works = [Work() for _ in range(3)]  # the pool has two threads
    tasks = [asyncio.ensure_future(plane.offload_steps(w.steps(), call())) for w in works]
    async with asyncio.timeout(20):
        assert await plane.offload(lambda: "done") == "done"
        while not all(work.num_steps for work in works):
            await asyncio.sleep(0.01)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert [await has_stopped(work) for work in works] == [True] * 3


async def test_long_work_ends_at_the_deadline(plane: DataPlane) -> None:
    work = Work()
    with pytest.raises(DeadlineExceeded):
        await plane.offload_steps(work.steps(), call(2 * SLICE_S))
    assert await has_stopped(work)
