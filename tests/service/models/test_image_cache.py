"""An image is encoded once: later answers are the same, within bounds of bytes and of keys."""

import asyncio
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from model.foreground import ForegroundFinder
from model.manifest import Quality
from service.images import SizeRule
from service.messages import EmbedImagesRequest, SegmentClass, SegmentImagesRequest
from service.models.image_cache import ENTRY_OVERHEAD_BYTES, EncodedImage, ImageCache, ImageKey
from service.models.registry import ModelRegistry, ModelRepository
from service.monitoring.metrics import Metrics
from tests.service.callers import ALL, BOTH, Answer, Ask, ask_rest
from tests.service.conftest import (
    BUNDLED,
    Encode,
    Entered,
    FakeRuntime,
    MakePlane,
    Serving,
    call,
    sample,
    until,
)

MANY_BYTES = 10_000_000
KEYS = ("a-key-that-is-long-enough", "another-key-that-is-long-enough")
HIT = "cache;desc=hit"
RULE = SizeRule(resolution=28, fit="aspect", patch_size=14, multiple=14)
ENTRY_BYTES = ENTRY_OVERHEAD_BYTES + 4
CLASSES = (SegmentClass(name="dog"), SegmentClass(name="sky"))
OUTPUTS = ("patches", "values", "cls1", "cls2")


def content(answer: Answer) -> Any:
    """What does not depend on the request's id and times."""
    assert answer.status in {"200", "OK"}
    return answer.messages or answer.text


def is_hit(answer: Answer) -> bool:
    return HIT in answer.headers["server-timing"]


@pytest.mark.parametrize("route", ["segment", "classify", "embed", "features", "infer"])
@BOTH
async def test_a_hit_has_the_bytes_of_a_miss_and_needs_no_lane(
    serving: Serving,
    encode_image: Encode,
    runtime: FakeRuntime,
    entered: Entered,
    ask: Ask,
    route: str,
) -> None:
    image, other = encode_image(), encode_image(size=(44, 30), seed=1)
    async with serving(image_cache_bytes=MANY_BYTES) as server:
        first = await ask(server, image, route)
        num_images = runtime.num_images
        while runtime.entered.acquire(blocking=False):
            pass
        runtime.gate.clear()
        held = asyncio.ensure_future(ask(server, other, route))
        assert await entered()
        second = await ask(server, image, route)
        assert runtime.num_images == num_images
        runtime.gate.set()
        third = await held
        hits, misses = (
            sample(server.metrics, f"image_cache_{n}_total") for n in ("hits", "misses")
        )
    assert content(second) == content(first) != content(third)
    assert [is_hit(answer) for answer in (first, second, third)] == [False, True, False]
    assert (hits, misses) == (1, 2)


@pytest.mark.parametrize(
    ("route", "num_bytes"), [("slide", MANY_BYTES), ("depth", MANY_BYTES), ("embed", 0)]
)
async def test_windows_and_maps_are_not_kept_nor_anything_without_bytes(
    serving: Serving, encode_image: Encode, route: str, num_bytes: int
) -> None:
    async with serving(image_cache_bytes=num_bytes) as server:
        answers = [await ask_rest(server, encode_image(), route) for _ in range(2)]
        assert server.models.images.num_bytes == 0
        misses = sample(server.metrics, "image_cache_misses_total")
    assert not any(map(is_hit, answers))
    assert content(answers[0]) == content(answers[1])
    assert misses == 0


@pytest.mark.parametrize("is_shared", [False, True])
@ALL
async def test_keys_share_images_only_if_the_operator_allows_it(
    serving: Serving, encode_image: Encode, runtime: FakeRuntime, ask: Ask, is_shared: bool
) -> None:
    settings = {"image_cache_bytes": MANY_BYTES, "image_cache_shared": is_shared}
    async with serving(api_keys=",".join(KEYS), **settings) as server:
        computed = []
        for key in (*KEYS, *KEYS):
            answer = await ask(server, encode_image(), "segment", headers={"x-api-key": key})
            assert answer.status in {"200", "OK"}
            computed.append(runtime.num_images)
    assert computed == ([1, 1, 1, 1] if is_shared else [1, 2, 2, 2])


async def test_partial_outputs_are_added(
    make_plane: MakePlane, encode_image: Encode, runtime: FakeRuntime
) -> None:
    plane, plain = make_plane(image_cache_bytes=MANY_BYTES), make_plane()
    images = (encode_image(),)
    masks = SegmentImagesRequest(images=images, classes=CLASSES, features="values")
    everything = EmbedImagesRequest(images=images, outputs=OUTPUTS, fit="aspect", normalize=False)

    async def num_images_of(request: Any) -> int:
        before = runtime.num_images
        method = plane.segment_images if request is masks else plane.embed_images
        await method(request, call())
        return runtime.num_images - before

    expected = (await plain.embed_images(everything, call())).embeddings[0]
    assert await num_images_of(masks) == 1
    assert await num_images_of(everything) == 1, "its patches were not computed"
    assert await num_images_of(masks) == 0
    assert await num_images_of(everything) == 0
    found = (await plane.embed_images(everything, call())).embeddings[0]
    assert found.keys() == expected.keys() == set(OUTPUTS)
    for name in OUTPUTS:
        np.testing.assert_array_equal(found[name], expected[name])


async def test_a_mask_that_follows_colours_needs_an_entry_with_colours(
    make_plane: MakePlane, encode_image: Encode
) -> None:
    plane, image = make_plane(image_cache_bytes=MANY_BYTES), encode_image()
    plain = SegmentImagesRequest(images=(image,), classes=CLASSES, quality="published")
    found, hits = [], []
    for request in (plain, replace(plain, quality="fast"), plain, replace(plain, quality="fast")):
        made = call()
        found.append((await plane.segment_images(request, made)).segmentations[0].labels_HW)
        hits.append(made.is_cached)
    assert hits == [False, False, True, True]
    np.testing.assert_array_equal(found[0], found[2])
    np.testing.assert_array_equal(found[1], found[3])


async def test_each_size_has_its_own_entry(
    make_plane: MakePlane, encode_image: Encode, runtime: FakeRuntime
) -> None:
    plane, image = make_plane(image_cache_bytes=MANY_BYTES), encode_image()
    for change in ({"resolution": 42}, {"resolution": 28}, {"fit": "aspect"}):
        for _ in range(2):
            await plane.embed_images(EmbedImagesRequest(images=(image,), **change), call())
    assert runtime.num_images == 3


async def test_known_new_and_broken_images_of_one_request_keep_their_places(
    make_plane: MakePlane, encode_image: Encode, runtime: FakeRuntime
) -> None:
    plane = make_plane(image_cache_bytes=MANY_BYTES)
    known, new = encode_image(seed=1), encode_image(seed=2)
    images = (new, b"no image", known, encode_image(seed=3)[:-40], known)
    alone = [
        (await plane.embed_images(EmbedImagesRequest(images=(image,)), call())).embeddings[0]
        for image in (encode_image(seed=2, size=(41, 30)), known)
    ]
    made = call()
    answer = await plane.embed_images(EmbedImagesRequest(images=images, partial=True), made)
    assert sorted(answer.errors) == [1, 3]
    assert runtime.num_images == 3, "one in each request"
    assert not made.is_cached
    for place in (1, 2):
        np.testing.assert_array_equal(answer.embeddings[place]["cls1"], alone[1]["cls1"])
    assert (answer.embeddings[0]["cls1"] != alone[1]["cls1"]).all()


async def test_a_model_that_is_replaced_loses_its_images(
    serve_fake: Any,
    make_settings: Any,
    metrics: Metrics,
    encode_image: Encode,
    make_plane: MakePlane,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.models.registry.collect_and_trim", lambda: None)
    runtimes: list[FakeRuntime] = []

    def load(source: Any) -> Any:
        runtimes.append(FakeRuntime())
        return serve_fake(make_settings(), metrics, runtimes[-1], source.name)

    plane = make_plane(image_cache_bytes=MANY_BYTES)
    cache = plane.models.images
    repository = ModelRepository(plane.models, load, folder=None)
    request = EmbedImagesRequest(images=(encode_image(),), model="swapped")
    await repository.start(BUNDLED.__class__("somewhere", "swapped"))
    for _ in range(2):
        await plane.embed_images(request, call())
    assert (runtimes[0].num_images, cache.num_bytes > 0) == (1, True)
    await repository.load("swapped")
    await until(lambda: cache.num_bytes == 0)
    for _ in range(2):
        await plane.embed_images(request, call())
    assert [runtime.num_images for runtime in runtimes] == [1, 1]
    await repository.unload("swapped")
    await until(lambda: cache.num_bytes == 0)
    await asyncio.to_thread(repository.close)


async def test_a_large_request_takes_the_memory_back(
    make_plane: MakePlane, encode_image: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    plane, image = make_plane(image_cache_bytes=MANY_BYTES), encode_image()
    large = encode_image(size=(1000, 1000))
    for limit in ("RELEASED_BYTES", "TRIMMED_BYTES"):
        monkeypatch.setattr(f"service.models.image_pipeline.{limit}", 1_000_000)
    await plane.embed_images(EmbedImagesRequest(images=(image,)), call())
    kept = plane.models.images.num_bytes
    await plane.embed_images(EmbedImagesRequest(images=(image,)), call())
    assert plane.models.images.num_bytes == kept > 0
    masks = SegmentImagesRequest(images=(large,), classes=CLASSES, include_scores=True)
    await plane.segment_images(masks, call())
    assert plane.models.images.num_bytes == 0, "nor is the large image kept meanwhile"
    made = call()
    await plane.embed_images(EmbedImagesRequest(images=(image,)), made)
    assert not made.is_cached


def key(number: int, cache: ImageCache, model: Any = None) -> ImageKey:
    made = cache.key(b"%d" % number, RULE, model, b"")
    assert made is not None
    return made


def encoded(num_values: int = 1, name: str = "cls1") -> EncodedImage:
    outputs = {name: np.ones(num_values, np.float32)}
    return EncodedImage(parts=(outputs,), grid_hw=(2, 2), scaled_hw=(28, 28), size_hw=(30, 30))


def test_bytes_are_bounded_as_entries_come_and_grow(metrics: Metrics) -> None:
    cache = ImageCache(metrics, max_bytes=2 * ENTRY_BYTES)
    first, second, third = (key(number, cache) for number in range(3))
    cache.keep(first, encoded())
    cache.keep(second, encoded())
    assert cache.find(first, ()) is not None
    cache.keep(third, encoded())
    assert [cache.find(k, ()) is not None for k in (first, second, third)] == [True, False, True]
    assert cache.num_bytes == sample(metrics, "image_cache_bytes") == 2 * ENTRY_BYTES
    cache.keep(second, encoded(num_values=ENTRY_BYTES))
    assert cache.find(second, ()) is None, "nothing gives way to what is too large"
    cache.keep(first, encoded(num_values=5, name="values"))
    assert cache.num_bytes == ENTRY_BYTES + 20
    found = cache.find(first, ("cls1", "values"))
    assert found is not None
    with pytest.raises(ValueError, match="read-only"):
        found.outputs["values"][0] = 2


def test_pixels_and_files_without_a_bound_have_no_key(metrics: Metrics) -> None:
    model: Any = None
    assert ImageCache(metrics, max_bytes=1).key(np.zeros((9, 9, 3)), RULE, model, b"") is None
    assert ModelRegistry(metrics).images.key(b"file", RULE, model, b"") is None


async def test_the_foreground_is_found_once_in_an_image(
    make_plane: MakePlane, encode_image: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    plane = make_plane(image_cache_bytes=MANY_BYTES)
    model, sides = plane.models.find(None), []

    def find_foreground(pixels_13HW: NDArray[np.float32]) -> NDArray[np.float32]:
        sides.append(pixels_13HW.shape[2])
        return np.ones((1, 1, *pixels_13HW.shape[2:]), np.float32)

    other_VD = np.ones((1, model.manifest.embed_dim), np.float32)
    finder = ForegroundFinder(find_foreground, other_VD, animals={"cat"})
    monkeypatch.setattr(model, "info", replace(model.info, foreground=finder))
    answers = []
    asked: list[tuple[str, Quality, int]] = [
        ("cat", "fast", 0),
        ("person", "published", 0),
        ("person", "fast", 1),
        ("person", "fast", 1),
        ("woman", "fine", 1),
    ]
    for name, quality, num_runs in asked:
        masks = SegmentImagesRequest(
            images=(encode_image(),), classes=(*CLASSES, SegmentClass(name=name)), quality=quality
        )
        answers.append(await plane.segment_images(masks, call()))
        assert len(sides) == num_runs, (name, quality)
    first, second = (answer.segmentations[0].labels_HW for answer in answers[2:4])
    np.testing.assert_array_equal(first, second)
    # With a background, the foreground matters for animals too.
    cat = (SegmentClass(name="cat"),)
    masks = SegmentImagesRequest(images=(encode_image(seed=5),), classes=cat, quality="fast")
    await plane.segment_images(masks, call())
    assert len(sides) == 2
    kept = plane.models.images.num_bytes
    plane.models.images.drop(model)
    assert kept > 0 == plane.models.images.num_bytes
