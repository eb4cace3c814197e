"""What is wrong with single images or texts, beside the answers of the others; never raised."""

import asyncio
import json
import urllib.request
from base64 import b64encode
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

import pytest

from service.server import Server
from tests.clients.python.comparison import assert_equal
from tipserve_client import AsyncClient, Client, InvalidRequest, RequestTooLarge, Unauthenticated
from tipserve_client.requests import make_request
from tipserve_client.results import FloatArray, ImageEmbedding, Item

if TYPE_CHECKING:
    from typing import assert_type

    from tests.clients.python.conftest import Asking

Serving = Callable[..., AbstractAsyncContextManager[Server]]
Encode = Callable[..., bytes]
CLASSES = ["dog", "sky"]

CALLS: dict[str, Callable[..., Any]] = {
    "embed_images": lambda c, given, **o: c.embed_images(given, outputs="patches", **o),
    "int8": lambda c, given, **o: c.embed_images(given, outputs="patches", dtype="int8", **o),
    "segment": lambda c, given, **o: c.segment(given, CLASSES, **o),
    "classify": lambda c, given, **o: c.classify(given, CLASSES, **o),
    "features": lambda c, given, **o: c.features(given, **o),
    "depth": lambda c, given, **o: c.depth(given, **o),
    "normals": lambda c, given, **o: c.normals(given, **o),
}


def told(error: Any) -> tuple[Any, ...]:
    return type(error), error.code, error.message, error.param, error.index


async def test_a_bad_image_among_good_ones_keeps_its_place(
    serving: Serving, encode_image: Encode, asking: "Asking"
) -> None:
    good = [encode_image(seed=seed) for seed in range(2)]
    given = [good[0], b"no image", good[1], "/no/such/file.jpg"]
    async with serving() as server, asking.client(server) as client:
        for call in CALLS.values():
            items = await call(client, given, partial=True)
            alone = await call(client, good)
            whole = await call(client, good, partial=True)
            with pytest.raises(InvalidRequest) as caught:
                await call(client, given[:3])
            assert [item.index for item in items] == [0, 1, 2, 3]
            assert_equal([items[0].result(), items[2].result()], alone)
            assert_equal([item.value for item in whole], alone)
            assert [item.error for item in whole] == [None, None]
            assert [items[place].value for place in (1, 3)] == [None, None]
            # What it would have been alone; and one that never left the caller's machine.
            assert told(items[1].error) == told(caught.value)
            assert items[1].error.request_id
            assert (items[3].error.code, items[3].error.index) == ("unreadable_file", 3)
            with pytest.raises(InvalidRequest):
                items[1].result()


async def test_texts_have_items_with_a_row_each(serving: Serving, asking: "Asking") -> None:
    async with serving() as server, asking.client(server) as client:
        items = await client.embed_texts(["dog", " ", "sky"], partial=True)
        small = await client.embed_texts(["dog", " ", "sky"], partial=True, dtype="int8")
        rows = await client.embed_texts(["dog", "sky"])
        small_rows = await client.embed_texts(["dog", "sky"], dtype="int8")
        (nothing,) = await client.embed_texts([" "], partial=True, dtype="float16")
    assert (items[1].value, items[1].error.code, items[1].error.index) == (None, "blank_text", 1)
    assert_equal([items[0].value, items[2].value], list(rows))
    assert_equal(small[2].value.values, small_rows.values[1])
    assert_equal(small[2].value.scales, small_rows.scales[1])
    assert nothing.error.param == "texts[0]"


async def test_errors_are_those_that_plain_http_tells(
    serving: Serving, encode_image: Encode, asking: "Asking"
) -> None:
    given = [b"no image", encode_image(), encode_image("JPEG", size=(200, 150))[:900]]
    images = [b64encode(image).decode() for image in given]
    body = json.dumps({"images": images, "partial": True}).encode()
    async with serving() as server, asking.client(server) as client:
        url = f"http://127.0.0.1:{server.ports['http']}/v1/images:embed"
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})

        def answer() -> Any:
            with urllib.request.urlopen(request, timeout=60) as response:
                return json.load(response)

        plain = (await asyncio.to_thread(answer))["errors"]
        items = await client.embed_images(given, partial=True)
    found = [item for item in items if item.error is not None]
    assert [item.index for item in found] == [error["index"] for error in plain] == [0, 2]
    for item, error in zip(found, plain, strict=True):
        for name in ("message", "code", "param"):
            assert getattr(item.error, name) == error["error"][name]


async def test_nothing_readable_is_no_error_of_the_whole(
    serving: Serving, asking: "Asking"
) -> None:
    async with serving() as server, asking.client(server) as client:
        items = await client.embed_images([b"x", "/no/such/file.jpg"], partial=True)
        (alone,) = await client.embed_images("/no/such/file.jpg", partial=True)
    assert [item.error.code for item in items] == ["invalid_image", "unreadable_file"]
    assert alone.error.code == "unreadable_file"


async def test_what_is_wrong_with_the_whole_request_is_raised(
    serving: Serving, encode_image: Encode, asking: "Asking"
) -> None:
    image = encode_image()
    async with serving(api_keys="the-key-of-this-test") as server:
        async with asking.client(server, api_key="the-key-of-this-test") as client:
            with pytest.raises(InvalidRequest) as caught:
                await client.embed_images([image, b"x"], partial=True, resolution=15)
            assert caught.value.param == "resolution"
            with pytest.raises(InvalidRequest):
                await client.embed_images([], partial=True)
            with pytest.raises(RequestTooLarge):
                await client.embed_images([image] * 33, partial=True)
            with pytest.raises(TypeError, match="no option 'partial'"):
                client.stream_images([image], partial=True)
        async with asking.client(server) as client:
            with pytest.raises(Unauthenticated):
                await client.embed_images([b"x"], partial=True)


def test_images_that_cannot_be_sent_leave_the_others_their_places() -> None:
    ask = make_request("embed_images", {}, images=[b"a", "/no/such/file.jpg", b"b"], partial=True)
    assert ask.images == (b"a", b"", b"b")
    assert list(ask.errors) == [1]
    assert ask.is_partial
    assert not make_request("embed_images", {}, images=b"a").is_partial


async def test_both_clients_are_precise_about_types(serving: Serving, encode_image: Encode) -> None:
    image = encode_image()

    def threaded(url: str) -> None:
        with Client(url) as client:
            plain = client.embed_images(image)
            items = client.embed_images(image, partial=True)
            texts = client.embed_texts(["a"], partial=True)
            if TYPE_CHECKING:
                assert_type(plain[0], ImageEmbedding)
                assert_type(items[0], Item[ImageEmbedding])
                assert_type(texts[0].value, FloatArray | None)
            assert isinstance(plain[0], ImageEmbedding)
            assert isinstance(items[0].result(), ImageEmbedding)

    async with serving() as server:
        await asyncio.to_thread(threaded, f"grpc://127.0.0.1:{server.ports['grpc']}")
        async with AsyncClient(f"http://127.0.0.1:{server.ports['http']}") as client:
            masks = await client.segment(image, CLASSES, partial=True)
            depth = await client.depth(image)
    if TYPE_CHECKING:
        assert_type(depth, list[FloatArray])
    assert masks[0].result().labels.shape == depth[0].shape
