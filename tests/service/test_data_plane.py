"""The core over a fake runtime: answers, order, costs, partial requests, cancellation."""

import asyncio
import time
from dataclasses import replace
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model.manifest import Manifest
from service import validation
from service.data_plane import DataPlane
from service.errors import (
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    ModelNotFound,
    NotSupported,
    Overloaded,
    RequestTooLarge,
    ServiceError,
)
from service.messages import (
    ClassifyImagesRequest,
    EmbedImagesRequest,
    EmbedMixedRequest,
    EmbedTextsRequest,
    EstimateMapsRequest,
    SegmentClass,
    SegmentImagesRequest,
    VisualizeFeaturesRequest,
)
from service.models.loading import served_tasks
from service.monitoring.metrics import Metrics
from service.waiting import SLICE_S, Steps
from tests.service.conftest import (
    Encode,
    Entered,
    FakeRuntime,
    MakePlane,
    call,
    sample,
    until,
)

DOG, SKY = SegmentClass(name="dog"), SegmentClass(name="sky", prompts=("sky", "blue sky"))
CLASSES = {"classes": (DOG, SKY)}
TEXTS = ("dog", "two cats")
# Method, its request without images, and the field of the answer with one item for each image.
EMBED = ("embed_images", EmbedImagesRequest, {"fit": "aspect"}, "embeddings")
SEGMENT = ("segment_images", SegmentImagesRequest, CLASSES, "segmentations")
SLIDE = ("segment_images", SegmentImagesRequest, {**CLASSES, "mode": "slide"}, "segmentations")
CLASSIFY = ("classify_images", ClassifyImagesRequest, CLASSES, "classifications")
FEATURES = ("visualize_features", VisualizeFeaturesRequest, {"scope": "request"}, "maps")
DEPTH = ("estimate_maps", EstimateMapsRequest, {"task": "depth"}, "maps")
NORMALS = ("estimate_maps", EstimateMapsRequest, {"task": "normals"}, "maps")
MIXED = ("embed_mixed", EmbedMixedRequest, {"texts": TEXTS}, "images_BD")
Capability = tuple[str, Any, dict[str, Any], str]
EVERY = pytest.mark.parametrize(
    "capability",
    [EMBED, SEGMENT, SLIDE, CLASSIFY, FEATURES, DEPTH, NORMALS],
    ids=["embed", "segment", "slide", "classify", "features", "depth", "normals"],
)


@pytest.fixture
def plane(make_plane: MakePlane) -> DataPlane:
    return make_plane(max_images_per_request=8)


async def answer_of(
    plane: DataPlane, capability: Capability, images: tuple[Any, ...], **change: Any
) -> Any:
    method, request_type, fields, _ = capability
    request = request_type(**{"images": images, **fields, **change})
    return await getattr(plane, method)(request, call())


def arrays(answer: Any, capability: Capability) -> list[Any]:
    """One array for each image of an answer."""
    items = getattr(answer, capability[3])
    return [
        item["cls1"]
        if isinstance(item, dict)
        else getattr(item, "labels_HW", getattr(item, "probabilities_K", item))
        for item in items
    ]


def num_waiting(plane: DataPlane) -> int:
    (model,) = plane.models.models()
    return sum(model.queue_depths().values())


def counts(runtime: FakeRuntime) -> tuple[int, int, int]:
    return runtime.num_images, runtime.num_texts, runtime.num_maps


@pytest.mark.parametrize("capability", [EMBED, SEGMENT, SLIDE, CLASSIFY, DEPTH, NORMALS, MIXED])
async def test_images_come_back_in_order_and_a_list_equals_its_items(
    plane: DataPlane, encode_image: Encode, capability: Capability
) -> None:
    images = tuple(encode_image(seed=s, size=(30 + 9 * s, 30)) for s in range(5))
    together = arrays(await answer_of(plane, capability, images), capability)
    for image, found in zip(images, together, strict=True):
        (alone,) = arrays(await answer_of(plane, capability, (image,)), capability)
        if np.issubdtype(alone.dtype, np.integer):
            assert (found == alone).mean() > 0.999, "rounding may decide a tie otherwise"
        else:
            np.testing.assert_allclose(found, alone, rtol=1e-4, atol=1e-6)
        if capability in (SEGMENT, SLIDE, DEPTH, NORMALS):
            assert found.shape[:2] == (30, 30 + 9 * images.index(image)), "the image's size"
        if capability is NORMALS:
            np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, atol=1e-5)


async def test_known_class_names_cost_no_pass_over_the_text_tower(
    plane: DataPlane, encode_image: Encode, runtime: FakeRuntime
) -> None:
    images = (encode_image(),)
    first = await answer_of(plane, SEGMENT, images, templates="tcl")
    assert runtime.num_texts == 27
    second = await answer_of(plane, SEGMENT, images, templates="tcl")
    await answer_of(plane, CLASSIFY, images, templates="tcl")
    assert runtime.num_texts == 27, "neither for masks nor for classes"
    np.testing.assert_array_equal(
        first.segmentations[0].labels_HW, second.segmentations[0].labels_HW
    )


@pytest.mark.parametrize("features", ["cls1", "cls2"])
@pytest.mark.parametrize("temperature", [None, 0.3])
async def test_classes_follow_from_the_embeddings_of_images_and_texts(
    plane: DataPlane, encode_image: Encode, features: Any, temperature: float | None
) -> None:
    images = tuple(encode_image(seed=s, size=(40 + s, 30)) for s in range(4))
    names = ("dog", "sky", "a long red thing")
    classes = tuple(SegmentClass(name=name) for name in names)
    options = {"features": features, "temperature": temperature, "templates": "tcl"}
    answer = await answer_of(plane, CLASSIFY, images, **{**options, "classes": classes})
    seen = await plane.embed_images(EmbedImagesRequest(images=images, outputs=(features,)), call())
    texts = await plane.embed_texts(EmbedTextsRequest(texts=names, templates="tcl"), call())
    for outputs, found in zip(seen.embeddings, answer.classifications, strict=True):
        cosines_K = texts.embeddings_TD @ outputs[features]
        order = np.argsort(-cosines_K)
        assert found.labels_K.tolist() == (order + 1).tolist()
        np.testing.assert_allclose(found.cosines_K, cosines_K[order], atol=1e-6)
        exponents = np.exp((cosines_K - cosines_K.max()) / (temperature or 0.01))
        expected = (exponents / exponents.sum())[order]
        np.testing.assert_allclose(found.probabilities_K, expected, rtol=1e-3, atol=1e-6)
    assert answer.classes == names


async def test_the_model_sees_an_image_once_for_all_outputs(
    plane: DataPlane, encode_image: Encode, runtime: FakeRuntime
) -> None:
    outputs = ("cls1", "values", "normals", "depth", "segmentation")
    images = tuple(encode_image(seed=seed, size=(40, 30)) for seed in range(2))
    request = EmbedImagesRequest(images=images, outputs=outputs, vector_type="int8")
    answer = await plane.embed_images(request, call())
    assert (runtime.num_images, runtime.num_maps) == (2, 6)
    for task in ("depth", "normals"):
        maps = EstimateMapsRequest(images=images, task=task, size="model")
        alone = (await plane.estimate_maps(maps, call())).maps
        for row, scales, array in zip(answer.embeddings, answer.scales, alone, strict=True):
            assert list(row) == list(outputs)
            np.testing.assert_array_equal(row[task], array)
            assert set(scales) == {"cls1", "values"}
            assert row["segmentation"].shape == (16, 16)
            assert set(np.unique(row["segmentation"])) <= {1, 2, 3}
    with pytest.raises(InvalidRequest, match="multiple of 28"):
        await plane.embed_images(replace(request, resolution=42), call())


async def test_the_class_model_stands_for_the_classes_of_the_package(
    plane: DataPlane, runtime: FakeRuntime
) -> None:
    pixels = np.zeros((56, 112, 3), np.uint8)
    pixels[:, :56, 1] = pixels[:, 56:, 2] = 200
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    request = SegmentImagesRequest(
        images=(stream.getvalue(),),
        classes=(SegmentClass(name="model"),),
        resolution=56,
        include_class_scores=True,
        include_instances=True,
        include_scores=True,
    )
    answer = await plane.segment_images(request, call())
    assert (runtime.num_images, runtime.num_texts, runtime.num_maps) == (0, 0, 1)
    assert answer.classes == ("red", "green", "blue")
    (mask,) = answer.segmentations
    assert (mask.labels_HW[:, :50] == 2).all()
    assert (mask.labels_HW[:, 62:] == 3).all()
    assert mask.area_shares == pytest.approx((0, 0, 0.5, 0.5), abs=0.05)
    assert [one.label for one in mask.instances] == [2, 3]
    # The logits are 0.28 and twice -0.5.
    share = 1 / (1 + 2 * np.exp(-200 / 255))
    assert mask.class_scores == pytest.approx((0, share, share), abs=0.02)
    assert mask.scores_HW is not None
    assert mask.scores_HW[0, 0] == pytest.approx(200 / 255 - 0.5, abs=0.01)
    small = await plane.segment_images(replace(request, size="patch"), call())
    assert small.segmentations[0].labels_HW.shape == (4, 8)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"mode": "slide"}, "mode"),
        ({"features": "values"}, "features"),
        ({"templates": "tcl"}, "templates"),
        ({"background_threshold": 0.5}, "background_threshold"),
        ({"background_classes": (SKY,)}, "background_classes"),
        ({"resolution": 42}, "resolution"),
    ],
)
async def test_options_that_the_own_classes_do_not_take_are_refused(
    plane: DataPlane, change: dict[str, Any], param: str
) -> None:
    asked = SegmentImagesRequest(
        **{"images": (b"x",), "classes": (SegmentClass(name="model"),), **change}
    )
    with pytest.raises(InvalidRequest) as caught:
        await plane.segment_images(asked, call())
    assert caught.value.param == param


async def test_a_package_without_named_classes_says_what_to_change(
    make_plane: MakePlane, runtime: FakeRuntime, manifest: Manifest
) -> None:
    asked = SegmentImagesRequest(images=(b"x",), classes=(SegmentClass(name="model"),))
    plane = make_plane()
    (model,) = plane.models.models()
    for update, text in (
        ({"segmentation_labels": []}, "convert it again"),
        ({"outputs": ["values", "cls1"]}, "has no head for segmentation; use a model that has one"),
    ):
        found = manifest.model_copy(update=update)
        model.info = replace(model.info, manifest=found, tasks=served_tasks(found, runtime))
        with pytest.raises(NotSupported, match=text) as caught:
            await plane.segment_images(asked, call())
        assert caught.value.param == "model"


@pytest.mark.parametrize(
    ("capability", "change", "needed"),
    [
        (EMBED, {}, ()),
        (EMBED, {"outputs": ("cls2", "depth")}, ()),
        (EMBED, {"outputs": ("patches", "cls1")}, ("patches",)),
        (EMBED, {"outputs": ("values", "patches")}, ("patches", "values")),
        (SEGMENT, {}, ("values",)),
        (SLIDE, {"features": "patches"}, ("patches",)),
        (CLASSIFY, {}, ()),
        (FEATURES, {"features": "values"}, ("values",)),
        (MIXED, {}, ()),
    ],
)
async def test_the_runtime_returns_only_what_the_request_needs(
    plane: DataPlane,
    encode_image: Encode,
    runtime: FakeRuntime,
    capability: Capability,
    change: dict[str, Any],
    needed: tuple[str, ...],
) -> None:
    runtime.patch_outputs.clear()
    await answer_of(plane, capability, (encode_image(),), **change)
    assert {frozenset(names) for names in runtime.patch_outputs} == {frozenset(needed)}


async def test_a_runtime_without_dense_heads_serves_the_other_outputs(
    make_plane: MakePlane, encode_image: Encode, runtime: FakeRuntime
) -> None:
    others = ("patches", "values", "cls1", "cls2", "text")
    heads = ("depth", "normals", "segmentation")
    assert make_plane().get_model(None).outputs == (*others, *heads)
    runtime.tasks = ("segmentation",)
    plane = make_plane()
    with pytest.raises(NotSupported, match=r"depth.* runtime fake") as caught:
        await answer_of(plane, DEPTH, (b"x",))
    assert (caught.value.code, caught.value.param) == ("not_supported", "model")
    assert plane.get_model(None).outputs == (*others, "segmentation")
    assert len((await answer_of(plane, EMBED, (encode_image(),))).embeddings) == 1


@pytest.mark.parametrize(
    ("capability", "change", "error", "param"),
    [
        *((c, {"images": ""}, InvalidRequest, "images") for c in (EMBED, SEGMENT, CLASSIFY)),
        *((c, {"images": ""}, InvalidRequest, "images") for c in (FEATURES, DEPTH)),
        (MIXED, {"images": "", "texts": ()}, InvalidRequest, "images"),
        (EMBED, {"images": "good " * 9}, RequestTooLarge, "images"),
        (EMBED, {"images": "good broken"}, InvalidRequest, "images[1]"),
        (EMBED, {"images": "good truncated"}, InvalidRequest, "images[1]"),
        (EMBED, {"images": "good long"}, InvalidRequest, "images[1]"),
        (EMBED, {"outputs": ("text",)}, InvalidRequest, "outputs[0]"),
        (EMBED, {"resolution": 15}, InvalidRequest, "resolution"),
        (EMBED, {"model": "other"}, ModelNotFound, "model"),
        (SEGMENT, {"background_threshold": 2.0}, InvalidRequest, "background_threshold"),
        (SEGMENT, {"classes": (DOG, DOG)}, InvalidRequest, "classes[1].name"),
        (CLASSIFY, {"top_k": 0}, InvalidRequest, "top_k"),
        (FEATURES, {"seed": 1}, InvalidRequest, "seed"),
        (MIXED, {"images": "broken"}, InvalidRequest, "images[0]"),
        (MIXED, {"texts": ("dog", " ")}, InvalidRequest, "texts[1]"),
        (MIXED, {"texts": ("a",) * 2049}, RequestTooLarge, "texts"),
        (MIXED, {"dimensions": 0}, InvalidRequest, "dimensions"),
        (MIXED, {"dimensions": 9}, InvalidRequest, "dimensions"),
    ],
)
async def test_an_invalid_request_names_its_field(
    make_plane: MakePlane,
    encode_image: Encode,
    runtime: FakeRuntime,
    capability: Capability,
    change: dict[str, Any],
    error: type[ServiceError],
    param: str | None,
) -> None:
    plane = make_plane(max_images_per_request=8)
    kinds = {
        "good": encode_image(),
        "broken": b"no image",
        "truncated": encode_image("JPEG", size=(200, 200))[:900],
        "long": encode_image(size=(400, 2)),
    }
    images = tuple(kinds[kind] for kind in change.get("images", "good good").split())
    with pytest.raises(error) as caught:
        await answer_of(plane, capability, **{**change, "images": images})
    assert caught.value.param == param
    assert (runtime.num_images, runtime.num_maps) == (0, 0)
    assert plane.admission.wait_idle(0)


async def test_one_input_and_a_list_get_the_same_overload_answer(
    plane: DataPlane, encode_image: Encode, runtime: FakeRuntime, entered: Entered
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


@pytest.mark.parametrize("capability", [EMBED, SLIDE, DEPTH, NORMALS])
async def test_a_caller_who_leaves_while_the_model_runs_frees_the_lane(
    plane: DataPlane,
    encode_image: Encode,
    runtime: FakeRuntime,
    entered: Entered,
    capability: Capability,
) -> None:
    await answer_of(plane, SEGMENT, (encode_image(),))  # the class names are cached now
    while runtime.entered.acquire(blocking=False):
        pass
    before = counts(runtime)
    runtime.gate.clear()
    image = encode_image(size=(28 + 21 * 7, 28))  # eight windows
    leaving = asyncio.ensure_future(answer_of(plane, capability, (image,)))
    assert await entered()
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    await until(lambda: runtime.num_interrupted == 1)
    runtime.gate.set()
    assert plane.admission.wait_idle(0)
    assert counts(runtime) == before


@EVERY
@pytest.mark.parametrize("fault", ["raise", "short"])
async def test_a_failed_batch_is_an_internal_error_and_the_next_request_is_served(
    plane: DataPlane,
    encode_image: Encode,
    runtime: FakeRuntime,
    capability: Capability,
    fault: Any,
) -> None:
    images = (encode_image(),) * 2
    # The class names are cached then. The next request would join a failing batch of texts.
    await answer_of(plane, capability, images)
    runtime.fault = fault
    with pytest.raises(InternalError):
        await answer_of(plane, capability, images)
    runtime.fault = ""
    assert len(arrays(await answer_of(plane, capability, images), capability)) == 2


class Work:
    """Steps without an end."""

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
    await until(lambda: all(work.num_steps for work in works))
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert [await has_stopped(work) for work in works] == [True] * 3


async def test_long_work_ends_at_the_deadline(plane: DataPlane) -> None:
    work = Work()
    with pytest.raises(DeadlineExceeded):
        await plane.offload_steps(work.steps(), call(2 * SLICE_S))
    assert await has_stopped(work)


# Windows.


def slide(*images: bytes, **values: Any) -> SegmentImagesRequest:
    classes = (DOG, SegmentClass(name="sky"))
    return SegmentImagesRequest(images=images, classes=classes, mode="slide", **values)


async def test_windows_of_one_request_share_batches(
    make_plane: MakePlane, encode_image: Encode, runtime: FakeRuntime, metrics: Metrics
) -> None:
    # Of 28 pixels, 21 apart: one window, two and four.
    images = [encode_image(size=size, seed=size[0]) for size in ((30, 30), (49, 28), (40, 110))]
    answer = await make_plane().segment_images(slide(*images, include_scores=True), call())
    assert [s.labels_HW.shape for s in answer.segmentations] == [(30, 30), (28, 49), (110, 40)]
    assert runtime.num_images == 1 + 2 + 4
    assert sample(metrics, "batch_images_count") < 1 + 2 + 4
    for mask in answer.segmentations:
        assert mask.scores_HW is not None
        assert (mask.scores_HW < 0.5).any(), "cosines, not probabilities of two classes"


async def test_one_window_gives_the_labels_and_scores_of_the_whole_image(
    plane: DataPlane, encode_image: Encode
) -> None:
    images = (encode_image(size=(28, 28)),)
    whole, windows = [
        (await answer_of(plane, SEGMENT, images, mode=mode, include_scores=True)).segmentations[0]
        for mode in ("whole", "slide")
    ]
    # A softmax changes no order, and the window's map is as large as the image's.
    np.testing.assert_array_equal(windows.labels_HW, whole.labels_HW)
    np.testing.assert_allclose(windows.scores_HW, whole.scores_HW, rtol=1e-5, atol=1e-6)


async def test_a_request_is_admitted_by_the_patches_of_all_its_windows(
    make_plane: MakePlane, encode_image: Encode, runtime: FakeRuntime
) -> None:
    plane = make_plane()
    # Prompts are known, so that images alone have a cost; the queue holds 256 patches.
    await plane.segment_images(slide(encode_image()), call())
    before = runtime.num_images
    long = encode_image(size=(28 + 21 * 6, 28))  # seven windows of four patches, 18 in a row
    await answer_of(plane, SEGMENT, (long,) * 10, classes=slide().classes)
    assert runtime.num_images == before + 10
    with pytest.raises(RequestTooLarge, match="280 patches"):
        await plane.segment_images(slide(*(long,) * 10), call())
    assert runtime.num_images == before + 10
    await plane.segment_images(slide(*(long,) * 9), call())
    assert runtime.num_images == before + 10 + 9 * 7


async def test_the_pixels_of_all_images_of_a_request_are_bounded(
    make_plane: MakePlane, encode_image: Encode, runtime: FakeRuntime
) -> None:
    plane = make_plane(max_batch_patches=6)  # eight of the largest images, of six patches each
    await answer_of(plane, SEGMENT, (encode_image(),) * 8)
    before = runtime.num_images
    with pytest.raises(RequestTooLarge, match="Send fewer"):
        await answer_of(plane, SEGMENT, (encode_image(),) * 9)
    assert runtime.num_images == before


async def test_slide_mode_bounds_the_values_of_all_classes(
    plane: DataPlane, encode_image: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "MAX_SLIDE_VALUES", 2 * 900)
    await plane.segment_images(slide(encode_image(size=(30, 30))), call())
    with pytest.raises(RequestTooLarge, match="900 pixels for so many"):
        await plane.segment_images(slide(encode_image(size=(30, 31))), call())
    await answer_of(plane, SEGMENT, (encode_image(size=(30, 31)),))


# Images and texts in one request.


async def test_images_and_texts_of_one_request_have_the_vectors_of_each_alone(
    plane: DataPlane, encode_image: Encode
) -> None:
    images = (encode_image(seed=1), encode_image(seed=2, size=(60, 20)))
    answer = await answer_of(plane, MIXED, images, fit="aspect")
    embedded = await answer_of(plane, EMBED, images)
    texts = await plane.embed_texts(EmbedTextsRequest(texts=TEXTS), call())
    np.testing.assert_array_equal(answer.images_BD, [e["cls1"] for e in embedded.embeddings])
    np.testing.assert_array_equal(answer.texts_TD, texts.embeddings_TD)
    assert answer.num_tokens == len("dog") + len("two cats")
    assert answer.num_patches == 2 * 3 + 2 * 6


async def test_a_mixed_request_is_admitted_as_a_whole_or_not_at_all(
    make_plane: MakePlane, encode_image: Encode, runtime: FakeRuntime, entered: Entered
) -> None:
    # Of 12 patches the image takes 4, and a prompt counts as 8: both fit, and then nothing does.
    plane = make_plane(max_queue_patches=12, max_batch_patches=12)
    images = (encode_image(),)
    runtime.gate.clear()
    first = asyncio.ensure_future(answer_of(plane, MIXED, images, texts=("dog",)))
    assert await entered()
    for texts in ((), ("dog",)):
        with pytest.raises(Overloaded):
            await answer_of(plane, MIXED, images, texts=texts)
    runtime.gate.set()
    assert len((await first).images_BD) == 1
    with pytest.raises(RequestTooLarge):
        await answer_of(plane, MIXED, images, texts=("cat", "sky"))


# Partial requests.


def with_broken_images(encode_image: Encode) -> tuple[Any, ...]:
    """Unreadable by its header, good, truncated, invalid before decoding, good."""
    given = InvalidRequest("images[3] is no base64.", code="invalid_base64", param="images[3]")
    truncated = encode_image("JPEG", size=(200, 150))[:900]
    return (b"hello", encode_image(seed=1), truncated, given, encode_image(seed=2))


@EVERY
async def test_a_partial_request_answers_its_valid_images_as_if_they_were_alone(
    plane: DataPlane, encode_image: Encode, capability: Capability
) -> None:
    images = with_broken_images(encode_image)
    answer = await answer_of(plane, capability, images, partial=True)
    assert {i: (e.code, e.param) for i, e in answer.errors.items()} == {
        0: ("invalid_image", "images[0]"),
        2: ("invalid_image", "images[2]"),
        3: ("invalid_base64", "images[3]"),
    }
    for error in answer.errors.values():
        # A frame would keep the image.
        assert error.__traceback__ is None
        assert error.__cause__ is error.__context__ is None
    good = await answer_of(plane, capability, (images[1], images[4]))
    found, expected = arrays(answer, capability), arrays(good, capability)
    assert len(found) == 2
    for mine, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(mine, other)


@EVERY
async def test_a_partial_request_without_a_valid_image_runs_no_model(
    plane: DataPlane, runtime: FakeRuntime, capability: Capability
) -> None:
    answer = await answer_of(plane, capability, (b"x", b"y"), partial=True)
    assert set(answer.errors) == {0, 1}
    assert len(arrays(answer, capability)) == 0
    assert (runtime.num_images, runtime.num_maps) == (0, 0)
    assert plane.admission.wait_idle(0)


async def test_a_partial_request_fails_for_errors_that_concern_all_its_images(
    make_plane: MakePlane, encode_image: Encode, runtime: FakeRuntime
) -> None:
    plane, image = make_plane(), encode_image()
    with pytest.raises(InvalidRequest):
        await answer_of(plane, EMBED, (image, b"x"), partial=True, resolution=15)
    with pytest.raises(RequestTooLarge):
        await answer_of(plane, EMBED, (image,) * 20, partial=True, resolution=56)
    runtime.fault = "raise"
    with pytest.raises(InternalError):
        await answer_of(plane, EMBED, (b"x", image), partial=True)
