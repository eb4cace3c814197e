"""Images and texts of one request: equal to the vectors of each alone, admitted as one request."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

import numpy as np
import pytest

from service.call import Call
from service.errors import InvalidRequest, Overloaded, RequestTooLarge
from service.messages import EmbedImagesRequest, EmbedMixedRequest, EmbedTextsRequest
from service.server import Server

if TYPE_CHECKING:
    from tests.service.conftest import FakeRuntime

Serving = Callable[..., AbstractAsyncContextManager[Server]]
Encode = Callable[..., bytes]
Entered = Callable[[], Awaitable[bool]]
TEXTS = ("dog", "two cats")


def call() -> Call:
    return Call(request_id="test", deadline=time.monotonic() + 20)


async def test_each_has_the_vector_that_it_has_alone(
    serving: Serving, encode_image: Encode
) -> None:
    images = (encode_image(seed=1), encode_image(seed=2, size=(60, 20)))
    async with serving() as server:
        plane = server.plane
        answer = await plane.embed_mixed(
            EmbedMixedRequest(images=images, texts=TEXTS, fit="aspect"), call()
        )
        embedded = await plane.embed_images(EmbedImagesRequest(images=images, fit="aspect"), call())
        texts = await plane.embed_texts(EmbedTextsRequest(texts=TEXTS), call())
    for row, alone in zip(answer.images_BD, embedded.embeddings, strict=True):
        np.testing.assert_array_equal(row, alone["cls1"])
    np.testing.assert_array_equal(answer.texts_TD, texts.embeddings_TD)
    assert answer.num_tokens == len("dog") + len("two cats")
    assert answer.num_patches == 2 * 3 + 2 * 6
    assert answer.model == "fake"


async def test_images_alone_and_texts_alone(serving: Serving, encode_image: Encode) -> None:
    async with serving() as server:
        alone_images = await server.plane.embed_mixed(
            EmbedMixedRequest(images=(encode_image(),)), call()
        )
        texts = await server.plane.embed_mixed(EmbedMixedRequest(texts=TEXTS), call())
        (told,) = server.plane.statistics()
    assert (len(alone_images.images_BD), len(alone_images.texts_TD)) == (1, 0)
    assert (alone_images.num_patches, alone_images.num_tokens) == (4, 0)
    assert (len(texts.images_BD), len(texts.texts_TD)) == (0, 2)
    assert texts.num_patches == 0
    assert told.num_items == 3


async def test_fewer_dimensions_are_the_first_ones_at_unit_length(
    serving: Serving, encode_image: Encode
) -> None:
    request = {"images": (encode_image(),), "texts": ("dog",)}
    async with serving() as server:
        whole, short = [
            await server.plane.embed_mixed(EmbedMixedRequest(dimensions=d, **request), call())  # type: ignore[arg-type]
            for d in (None, 3)
        ]
    for all_of_it, part in ((whole.images_BD, short.images_BD), (whole.texts_TD, short.texts_TD)):
        first = all_of_it[:, :3]
        np.testing.assert_allclose(part, first / np.linalg.norm(first), rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "error", "param"),
    [
        ({"images": (), "texts": ()}, InvalidRequest, "images"),
        ({"images": (b"no image",)}, InvalidRequest, "images[0]"),
        ({"texts": ("dog", " ")}, InvalidRequest, "texts[1]"),
        ({"texts": ("a",) * 4}, RequestTooLarge, "texts"),
        ({"dimensions": 0}, InvalidRequest, "dimensions"),
        ({"dimensions": 9}, InvalidRequest, "dimensions"),
        ({"resolution": 15}, InvalidRequest, "resolution"),
    ],
)
async def test_what_cannot_be_answered_names_its_field(
    serving: Serving, change: dict[str, object], error: type[Exception], param: str
) -> None:
    async with serving(max_texts_per_request=3) as server:
        fields = {"texts": ("dog",), **change}
        with pytest.raises(error) as caught:
            await server.plane.embed_mixed(EmbedMixedRequest(**fields), call())  # type: ignore[arg-type]
    assert getattr(caught.value, "param", None) == param


async def test_it_is_let_in_as_a_whole_or_not_at_all(
    serving: Serving, encode_image: Encode, runtime: "FakeRuntime", entered: Entered
) -> None:
    # Of 12 patches the image takes 4, and a prompt counts as 8: both fit, and then nothing does.
    async with serving(max_queue_patches=12, max_batch_patches=12) as server:
        runtime.gate.clear()
        request = EmbedMixedRequest(images=(encode_image(),), texts=("dog",))
        first = asyncio.ensure_future(server.plane.embed_mixed(request, call()))
        assert await entered()
        for other in (EmbedMixedRequest(images=(encode_image(),)), request):
            with pytest.raises(Overloaded):
                await server.plane.embed_mixed(other, call())
        runtime.gate.set()
        assert len((await first).images_BD) == 1
        large = EmbedMixedRequest(images=(encode_image(),), texts=("cat", "sky"))
        with pytest.raises(RequestTooLarge):
            await server.plane.embed_mixed(large, call())


async def test_who_leaves_takes_images_and_texts_along(
    serving: Serving, encode_image: Encode, runtime: "FakeRuntime", entered: Entered
) -> None:
    async with serving(text_cache_bytes=1) as server:
        runtime.gate.clear()
        holding = asyncio.ensure_future(
            server.plane.embed_texts(EmbedTextsRequest(texts=("held",)), call())
        )
        assert await entered()
        request = EmbedMixedRequest(images=(encode_image(),), texts=("dog",))
        leaving = asyncio.ensure_future(server.plane.embed_mixed(request, call()))
        async with asyncio.timeout(20):
            (model,) = server.models.models()
            while sum(model.queue_depths().values()) < 2:
                await asyncio.sleep(0.001)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        runtime.gate.set()
        await holding
        assert (runtime.num_images, runtime.num_texts) == (0, 1)
