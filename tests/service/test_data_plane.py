"""The core over a fake runtime: answers, order, costs, partial requests, cancellation."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model.graphs import DENSE_TASKS
from model.manifest import Manifest
from model.segmentation import upsample_bilinear
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
from service.lanes.work import ItemFuture
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
from tests.service.conftest import Encode, Entered, FakeRuntime, MakePlane, call, sample, until

DOG, SKY = SegmentClass(name="dog"), SegmentClass(name="sky", prompts=("sky", "blue sky"))
CLASSES = {"classes": (DOG, SKY)}
OWN = {"classes": (SegmentClass(name="model"),)}
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


@dataclass
class Core:
    """A data plane over a fake runtime; `make` replaces it by one with other settings."""

    make_plane: MakePlane
    runtime: FakeRuntime
    image: Encode
    entered: Entered
    plane: DataPlane

    def make(self, **settings: int) -> None:
        self.plane = self.make_plane(**settings)

    @property
    def counts(self) -> tuple[int, int, int]:
        return self.runtime.num_images, self.runtime.num_texts, self.runtime.num_maps

    async def ask(self, capability: Capability, *images: Any, **change: Any) -> Any:
        """The answer to a request."""
        method, request_type, fields, _ = capability
        request = request_type(**{"images": images, **fields, **change})
        return await getattr(self.plane, method)(request, call())

    async def arrays(self, capability: Capability, *images: Any, **change: Any) -> list[Any]:
        """One array of the answer for each image."""
        return arrays_of(await self.ask(capability, *images, **change), capability)


def arrays_of(answer: Any, capability: Capability) -> list[Any]:
    return [
        item["cls1"]
        if isinstance(item, dict)
        else getattr(item, "labels_HW", getattr(item, "probabilities_K", item))
        for item in getattr(answer, capability[3])
    ]


@pytest.fixture
def core(
    make_plane: MakePlane, runtime: FakeRuntime, encode_image: Encode, entered: Entered
) -> Core:
    return Core(make_plane, runtime, encode_image, entered, make_plane())


async def test_known_class_names_cost_no_pass_over_the_text_tower(core: Core) -> None:
    (first,) = await core.arrays(SEGMENT, core.image(), templates="tcl")
    assert core.runtime.num_texts == 27
    (second,) = await core.arrays(SEGMENT, core.image(), templates="tcl")
    await core.ask(CLASSIFY, core.image(), templates="tcl")
    assert core.runtime.num_texts == 27, "neither for masks nor for classes"
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("features", ["cls1", "cls2"])
@pytest.mark.parametrize("temperature", [None, 0.3])
async def test_classes_follow_from_the_embeddings_of_images_and_texts(
    core: Core, features: Any, temperature: float | None
) -> None:
    images = [core.image(seed=s, size=(40 + s, 30)) for s in range(4)]
    names = ("dog", "sky", "a long red thing")
    asked = {"features": features, "temperature": temperature, "templates": "tcl"}
    asked["classes"] = tuple(SegmentClass(name=name) for name in names)
    answer = await core.ask(CLASSIFY, *images, **asked)
    seen = await core.ask(EMBED, *images, outputs=(features,), fit="squash")
    texts = await core.plane.embed_texts(EmbedTextsRequest(texts=names, templates="tcl"), call())
    for outputs, found in zip(seen.embeddings, answer.classifications, strict=True):
        cosines_K = texts.embeddings_TD @ outputs[features]
        order = np.argsort(-cosines_K)
        assert found.labels_K.tolist() == (order + 1).tolist()
        np.testing.assert_allclose(found.cosines_K, cosines_K[order], atol=1e-6)
        exponents = np.exp((cosines_K - cosines_K.max()) / (temperature or 0.01))
        expected = (exponents / exponents.sum())[order]
        np.testing.assert_allclose(found.probabilities_K, expected, rtol=1e-3, atol=1e-6)
    assert answer.classes == names


@pytest.mark.parametrize(
    ("capability", "num_images", "patches"),
    [
        (EMBED, 1, 4),
        (EMBED, 3, 6),  # on two lanes
        (DEPTH, 1, 8),  # a head costs as much as the backbone
        (SLIDE, 1, 12),  # three prompts of 8 patches; the windows cost less
        (MIXED, 1, 8),
    ],
    ids=["embed", "three", "depth", "prompts", "mixed"],
)
async def test_the_unloaded_time_of_a_request_follows_from_its_patches_and_the_lanes(
    core: Core, capability: Capability, num_images: int, patches: int
) -> None:
    served = core.plane.models.find(None)
    served.patch_s, served.lanes = 0.01, 2 * tuple(served.lanes)
    images = [core.image(seed=seed, size=(30, 30)) for seed in range(num_images)]
    method, request_type, fields, _ = capability
    made = call()
    await getattr(core.plane, method)(request_type(images=images, **fields), made)
    assert made.unloaded_s == pytest.approx(0.01 * patches)
    repeated = call()
    await core.plane.embed_texts(EmbedTextsRequest(texts=TEXTS), repeated)
    await core.plane.embed_texts(EmbedTextsRequest(texts=TEXTS), repeated)
    assert repeated.unloaded_s == 0.0, "known texts need no lane"


async def test_the_model_sees_an_image_once_for_all_outputs(core: Core) -> None:
    outputs = ("cls1", "values", "normals", "depth", "segmentation")
    images = [core.image(seed=seed, size=(40, 30)) for seed in range(2)]
    answer = await core.ask(EMBED, *images, outputs=outputs, vector_type="int8", fit="squash")
    assert core.counts == (2, 0, 6)
    for task, capability in (("depth", DEPTH), ("normals", NORMALS)):
        alone = await core.arrays(capability, *images, size="model")
        for row, scales, array in zip(answer.embeddings, answer.scales, alone, strict=True):
            assert list(row) == list(outputs)
            np.testing.assert_array_equal(row[task], array)
            assert set(scales) == {"cls1", "values"}
            assert row["segmentation"].shape == (16, 16)
            assert set(np.unique(row["segmentation"])) <= {1, 2, 3}
    with pytest.raises(InvalidRequest, match="multiple of 28"):
        await core.ask(EMBED, *images, outputs=outputs, resolution=42)


async def test_the_class_model_stands_for_the_classes_of_the_package(core: Core) -> None:
    pixels = np.zeros((56, 112, 3), np.uint8)
    pixels[:, :56, 1] = pixels[:, 56:, 2] = 200
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    more = {"include_class_scores": True, "include_instances": True, "include_scores": True}
    answer = await core.ask(SEGMENT, stream.getvalue(), **OWN, **more, resolution=56)
    assert core.counts == (0, 0, 1)
    assert answer.classes == ("red", "green", "blue")
    (mask,) = answer.segmentations
    assert (mask.labels_HW[:, :50] == 2).all()
    assert (mask.labels_HW[:, 62:] == 3).all()
    assert mask.area_shares == pytest.approx((0, 0, 0.5, 0.5), abs=0.05)
    assert [one.label for one in mask.instances] == [2, 3]
    # The logits are 0.28 and twice -0.5.
    share = 1 / (1 + 2 * np.exp(-200 / 255))
    assert mask.class_scores == pytest.approx((0, share, share), abs=0.02)
    assert mask.scores_HW[0, 0] == pytest.approx(200 / 255 - 0.5, abs=0.01)
    small = {"resolution": 56, "size": "patch"}
    # On a square by default, as the released head was asked.
    for change, shape in (({}, (4, 4)), ({"fit": "aspect"}, (4, 8))):
        (labels_HW,) = await core.arrays(SEGMENT, stream.getvalue(), **OWN, **small, **change)
        assert labels_HW.shape == shape
    (labels_HW,) = await core.arrays(SEGMENT, stream.getvalue(), **small)
    assert labels_HW.shape == (4, 8)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"mode": "slide"}, "mode"),
        ({"features": "values"}, "features"),
        ({"templates": "tcl"}, "templates"),
        ({"background_threshold": 0.5}, "background_threshold"),
        ({"background_classes": (SKY,)}, "background_classes"),
        ({"background": "auto"}, "background"),
        ({"background_level": 0.5}, "background_level"),
        ({"quality": "fast"}, "quality"),
        ({"resolution": 42}, "resolution"),
        ({"include_all_scores": True}, "include_scores"),
    ],
)
async def test_options_that_the_own_classes_do_not_take_are_refused(
    core: Core, change: dict[str, Any], param: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await core.ask(SEGMENT, b"x", **OWN, **change)
    assert caught.value.param == param


async def test_a_package_or_runtime_without_a_head_says_what_to_change(
    core: Core, manifest: Manifest
) -> None:
    (model,) = core.plane.models.models()
    for update, tasks, text in (
        ({"segmentation_labels": []}, DENSE_TASKS, "convert it again"),
        ({"outputs": ["values", "cls1"]}, DENSE_TASKS, "has no head for segmentation; use a model"),
        ({}, ("depth",), "segmentation.* runtime fake"),
    ):
        core.runtime.tasks = tasks
        found = manifest.model_copy(update=update)
        model.info = replace(model.info, manifest=found, tasks=served_tasks(found, core.runtime))
        with pytest.raises(NotSupported, match=text) as caught:
            await core.ask(SEGMENT, b"x", **OWN)
        assert (caught.value.code, caught.value.param) == ("not_supported", "model")
    others = ("patches", "values", "cls1", "cls2", "text")
    assert core.plane.get_model(None).outputs == (*others, "depth")
    assert len(await core.arrays(EMBED, core.image())) == 1


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
    core: Core, capability: Capability, change: dict[str, Any], needed: tuple[str, ...]
) -> None:
    core.runtime.patch_outputs.clear()
    await core.ask(capability, core.image(), **change)
    assert {frozenset(names) for names in core.runtime.patch_outputs} == {frozenset(needed)}


@pytest.mark.parametrize(
    ("capability", "change", "error", "param"),
    [
        *((c, {"images": ""}, InvalidRequest, "images") for c in (EMBED, SEGMENT, CLASSIFY)),
        *((c, {"images": ""}, InvalidRequest, "images") for c in (FEATURES, DEPTH)),
        (MIXED, {"images": "", "texts": ()}, InvalidRequest, "images"),
        (EMBED, {"images": "good " * 33}, RequestTooLarge, "images"),
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
    core: Core,
    capability: Capability,
    change: dict[str, Any],
    error: type[ServiceError],
    param: str | None,
) -> None:
    kinds = {
        "good": core.image(),
        "broken": b"no image",
        "truncated": core.image("JPEG", size=(200, 200))[:900],
        "long": core.image(size=(400, 2)),
    }
    images = tuple(kinds[kind] for kind in change.get("images", "good good").split())
    with pytest.raises(error) as caught:
        await core.ask(capability, **{**change, "images": images})
    assert caught.value.param == param
    assert (core.runtime.num_images, core.runtime.num_maps) == (0, 0)
    assert core.plane.admission.wait_idle(0)


async def test_one_input_and_a_list_get_the_same_overload_answer(core: Core) -> None:
    core.runtime.gate.clear()
    running = asyncio.ensure_future(
        core.ask(EMBED, *[core.image()] * 4, resolution=112, fit="squash")
    )
    assert await core.entered()
    for count in (1, 3):
        with pytest.raises(Overloaded) as caught:
            await core.ask(EMBED, *[core.image()] * count)
        assert caught.value.retry_after_s
    core.runtime.gate.set()
    assert len((await running).embeddings) == 4


async def test_the_image_that_fails_first_is_the_answer_while_others_run(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    (model,) = core.plane.models.models()
    running, failing = ItemFuture(), ItemFuture()
    monkeypatch.setattr(model.queue, "put", lambda _: [running, failing])
    assert running.start()
    failing.settle(error=Overloaded("The memory is full.", retry_after_s=1.0))
    with pytest.raises(Overloaded):
        await core.ask(EMBED, core.image(), core.image())
    assert running.is_abandoned


class Work:
    """Steps without an end."""

    num_steps = 0

    def steps(self) -> Steps[None]:
        while True:
            self.num_steps += 1
            yield
            time.sleep(0.001)

    async def stopped(self) -> None:
        """Return when no step is made any more."""
        async with asyncio.timeout(20):
            before = 0
            while before != self.num_steps:
                before = self.num_steps
                await asyncio.sleep(4 * SLICE_S)


async def test_long_work_leaves_the_pool_to_other_work_and_ends_with_its_caller(core: Core) -> None:
    works = [Work() for _ in range(3)]  # the pool has two threads
    offload = core.plane.offload_steps
    tasks = [asyncio.ensure_future(offload(w.steps(), call())) for w in works]
    async with asyncio.timeout(20):
        assert await core.plane.offload(lambda: "done") == "done"
    await until(lambda: all(work.num_steps for work in works))
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    late = Work()
    with pytest.raises(DeadlineExceeded):
        await offload(late.steps(), call(2 * SLICE_S))
    for work in (*works, late):
        await work.stopped()


# Windows.


async def test_windows_of_one_request_share_batches(core: Core, metrics: Metrics) -> None:
    # Of 28 pixels, 21 apart: one window, two and four.
    images = [core.image(size=size, seed=size[0]) for size in ((30, 30), (49, 28), (40, 110))]
    answer = await core.ask(SLIDE, *images, include_scores=True)
    assert [s.labels_HW.shape for s in answer.segmentations] == [(30, 30), (28, 49), (110, 40)]
    assert core.runtime.num_images == 1 + 2 + 4
    assert sample(metrics, "batch_images_count") < 1 + 2 + 4
    for mask in answer.segmentations:
        assert (mask.scores_HW < 0.5).any(), "cosines, not probabilities of two classes"


@pytest.mark.parametrize("size", ["image", "model", "patch"])
@pytest.mark.parametrize("capability", [SEGMENT, SLIDE], ids=["whole", "slide"])
async def test_cosines_of_all_classes_have_the_scores_as_their_maximum(
    core: Core, capability: Capability, size: str
) -> None:
    images = [core.image(size=each, seed=each[0]) for each in ((30, 30), (49, 28))]
    more = {"include_scores": True, "include_all_scores": True, "background": "none"}
    wall = (SegmentClass(name="wall"),)
    plain = await core.ask(capability, *images, size=size, **more)
    beside = await core.ask(capability, *images, size=size, **more, background_classes=wall)
    for mask, other in zip(plain.segmentations, beside.segmentations, strict=True):
        assert mask.cosines_KHW.shape == (2, *mask.labels_HW.shape)
        np.testing.assert_array_equal(mask.cosines_KHW, other.cosines_KHW)
        if capability is SEGMENT:
            best_HW = mask.cosines_KHW.max(axis=0)
            np.testing.assert_allclose(best_HW, mask.scores_HW, rtol=1e-5, atol=1e-6)
        chosen_HW = np.take_along_axis(mask.cosines_KHW, mask.labels_HW[None] - 1, axis=0)[0]
        np.testing.assert_allclose(chosen_HW, mask.scores_HW, rtol=1e-5, atol=1e-6)
        assert (await core.ask(capability, *images)).segmentations[0].cosines_KHW is None


@pytest.mark.parametrize("quality", ["published", "fast", "fine"])
async def test_a_batch_of_any_quality_has_the_masks_of_its_images(core: Core, quality: str) -> None:
    images = [core.image(size=size, seed=size[0]) for size in ((30, 30), (49, 28), (60, 40))]
    asked = {"quality": quality, "include_scores": True, "background": "auto"}
    together = await core.ask(SEGMENT, *images, **asked)
    assert core.runtime.num_images == (6 if quality == "fine" else 3)
    for image, mask in zip(images, together.segmentations, strict=True):
        (alone,) = (await core.ask(SEGMENT, image, **asked)).segmentations
        np.testing.assert_array_equal(mask.labels_HW, alone.labels_HW)
        np.testing.assert_allclose(mask.scores_HW, alone.scores_HW, rtol=1e-5, atol=1e-6)
    some = await core.ask(SEGMENT, b"broken", *images, **asked, partial=True)
    assert list(some.errors) == [0]
    assert len(some.segmentations) == 3


async def test_fine_is_a_mean_of_two_sizes_and_admitted_by_the_patches_of_both(core: Core) -> None:
    image = core.image(size=(60, 60))
    asked = {"size": "patch", "include_all_scores": True, "background": "none"}
    found = [
        (await core.ask(SEGMENT, image, **asked, **change)).segmentations[0].cosines_KHW
        for change in (
            {"quality": "fast"},
            {"quality": "fast", "resolution": 42},
            {"quality": "fine"},
        )
    ]
    mean_KHW = (found[0] + upsample_bilinear(found[1], (2, 2))) / 2
    assert np.abs(found[2] - mean_KHW).max() < 0.3 * np.abs(found[0] - found[1].mean()).max()
    # Of 28 and 42 pixels: four patches and nine; three new prompts cost eight each.
    core.make(max_queue_patches=28, max_batch_patches=28)
    await core.ask(SEGMENT, image)
    await core.ask(SEGMENT, image, image, quality="fine")
    with pytest.raises(RequestTooLarge, match="39 patches"):
        await core.ask(SEGMENT, image, image, image, quality="fine")
    # A long image whose second size has too many patches gets a smaller one.
    core.make(max_batch_patches=10)
    await core.ask(SEGMENT, core.image(size=(60, 120)), quality="fine")


async def test_a_request_is_admitted_by_the_patches_of_all_its_windows(core: Core) -> None:
    core.make()
    # Prompts are known, so that images alone have a cost; the queue holds 256 patches.
    await core.ask(SLIDE, core.image())
    before = core.runtime.num_images
    long = core.image(size=(28 + 21 * 6, 28))  # seven windows of four patches, 18 in a row
    await core.ask(SEGMENT, *[long] * 10)
    assert core.runtime.num_images == before + 10
    with pytest.raises(RequestTooLarge, match="280 patches"):
        await core.ask(SLIDE, *[long] * 10)
    assert core.runtime.num_images == before + 10
    await core.ask(SLIDE, *[long] * 9)
    assert core.runtime.num_images == before + 10 + 9 * 7


async def test_pixels_of_all_images_and_values_of_all_classes_are_bounded(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    core.make(max_batch_patches=6)  # eight of the largest images, of six patches each
    await core.ask(SEGMENT, *[core.image()] * 8)
    before = core.runtime.num_images
    with pytest.raises(RequestTooLarge, match="Send fewer"):
        await core.ask(SEGMENT, *[core.image()] * 9)
    assert core.runtime.num_images == before
    core.make()
    monkeypatch.setattr(validation, "MAX_SLIDE_VALUES", 2 * 900)
    await core.ask(SLIDE, core.image(size=(30, 30)))
    with pytest.raises(RequestTooLarge, match="900 pixels for so many"):
        await core.ask(SLIDE, core.image(size=(30, 31)))
    await core.ask(SEGMENT, core.image(size=(30, 31)))


# Images and texts in one request.


async def test_images_and_texts_of_one_request_have_the_vectors_of_each_alone(core: Core) -> None:
    images = (core.image(seed=1), core.image(seed=2, size=(60, 20)))
    answer = await core.ask(MIXED, *images, fit="aspect")
    texts = await core.plane.embed_texts(EmbedTextsRequest(texts=TEXTS), call())
    np.testing.assert_array_equal(answer.images_BD, await core.arrays(EMBED, *images))
    np.testing.assert_array_equal(answer.texts_TD, texts.embeddings_TD)
    assert answer.num_tokens == len("dog") + len("two cats")
    assert answer.num_patches == 2 * 3 + 2 * 6


async def test_a_mixed_request_is_admitted_as_a_whole_or_not_at_all(core: Core) -> None:
    # Of 12 patches the image takes 4, and a prompt counts as 8: both fit, and then nothing does.
    core.make(max_queue_patches=12, max_batch_patches=12)
    core.runtime.gate.clear()
    first = asyncio.ensure_future(core.ask(MIXED, core.image(), texts=("dog",)))
    assert await core.entered()
    for texts in ((), ("dog",)):
        with pytest.raises(Overloaded):
            await core.ask(MIXED, core.image(), texts=texts)
    core.runtime.gate.set()
    assert len((await first).images_BD) == 1
    with pytest.raises(RequestTooLarge):
        await core.ask(MIXED, core.image(), texts=("cat", "sky"))


# Partial requests.


@EVERY
async def test_a_partial_request_answers_its_valid_images_as_if_they_were_alone(
    core: Core, capability: Capability
) -> None:
    # Unreadable by its header, good, truncated, invalid before decoding, good.
    given = InvalidRequest("images[3] is no base64.", code="invalid_base64", param="images[3]")
    truncated = core.image("JPEG", size=(200, 150))[:900]
    images = (b"hello", core.image(seed=1), truncated, given, core.image(seed=2))
    answer = await core.ask(capability, *images, partial=True)
    assert {i: (e.code, e.param) for i, e in answer.errors.items()} == {
        0: ("invalid_image", "images[0]"),
        2: ("invalid_image", "images[2]"),
        3: ("invalid_base64", "images[3]"),
    }
    for error in answer.errors.values():
        # A frame would keep the image.
        assert error.__traceback__ is None
        assert error.__cause__ is error.__context__ is None
    expected = await core.arrays(capability, images[1], images[4])
    for mine, other in zip(arrays_of(answer, capability), expected, strict=True):
        np.testing.assert_array_equal(mine, other)


@EVERY
async def test_a_partial_request_without_a_valid_image_runs_no_model(
    core: Core, capability: Capability
) -> None:
    answer = await core.ask(capability, b"x", b"y", partial=True)
    assert set(answer.errors) == {0, 1}
    assert len(arrays_of(answer, capability)) == 0
    assert (core.runtime.num_images, core.runtime.num_maps) == (0, 0)
    assert core.plane.admission.wait_idle(0)


async def test_a_partial_request_fails_for_errors_that_concern_all_its_images(core: Core) -> None:
    core.make()
    image = core.image()
    failing: list[tuple[type[Exception], Callable[[], Awaitable[Any]]]] = [
        (InvalidRequest, lambda: core.ask(EMBED, image, b"x", partial=True, resolution=15)),
        (RequestTooLarge, lambda: core.ask(EMBED, *[image] * 20, partial=True, resolution=56)),
        (InternalError, lambda: core.ask(EMBED, b"x", image, partial=True)),
    ]
    core.runtime.fault = "raise"
    for error, ask in failing:
        with pytest.raises(error):
            await ask()
