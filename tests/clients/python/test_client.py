"""Both kinds of client over both protocols: the same results and the same errors."""

import asyncio
import pickle
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import trustme

from tests.clients.python.conftest import LIMIT_S, Asking, assert_equal, inflight, until
from tests.service.conftest import Encode, Entered, FakeRuntime, Serving
from tipserve_client import (
    AsyncClient,
    Client,
    DeadlineExceeded,
    HalfImageEmbedding,
    ImageEmbedding,
    Int8ImageEmbedding,
    Int8Vectors,
    InvalidRequest,
    Item,
    NotFound,
    RequestTooLarge,
    Retry,
    Tls,
    Unauthenticated,
    Unavailable,
)
from tipserve_client.results import LIMITS, FloatArray

if TYPE_CHECKING:
    from typing import assert_type

    from tipserve_client.results import HalfArray

KEY = "the-key-of-this-test"
EVERY = ("cls1", "cls2", "patches", "values")
KINDS = {"float32": ImageEmbedding, "float16": HalfImageEmbedding, "int8": Int8ImageEmbedding}
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
BOTH = pytest.mark.parametrize("protocol", ["http", "grpc"])


async def test_results_have_their_shapes_and_types(encode_image: Encode, client: Any) -> None:
    images = [encode_image(seed=seed) for seed in range(3)]
    classes = {"dog": ["a dog", "a photo of a dog"], "sky": []}
    outputs = ["patches", "depth", "normals"]
    embedded = await client.embed_images(images, outputs=outputs, resolution=56)
    words = await client.embed_texts(CLASSES, templates=["a {}", "the {}"])
    options: dict[str, Any] = {"include_scores": True, "include_instances": True}
    options |= {"min_area_share": 0.0001, "holes": "fill"}
    masks = await client.segment(images, classes, background_classes=["wall"], **options)
    ((best, _),) = await client.classify(images[0], classes)
    (colors,) = await client.features(images[0])
    depth = await client.depth(images, size="model", resolution=56)
    (model,) = await client.models()
    # One text or class needs no list.
    assert_equal(await client.embed_texts("dog"), await client.embed_texts(["dog"]))
    for find in (client.segment, client.classify):
        assert_equal(await find(images[0], "dog"), await find(images[0], ["dog"]))
    assert [e.patches.shape for e in embedded] == [(4, 4, 8)] * 3
    np.testing.assert_allclose([e.depth for e in embedded], depth, rtol=1e-5)
    assert embedded[0].normals.shape == (*depth[0].shape, 3)
    np.testing.assert_allclose(np.linalg.norm(words, axis=1), [1, 1], rtol=1e-5)
    for mask in masks:
        assert mask.labels.shape == mask.scores.shape == (30, 40)
        assert [area.name for area in mask.classes] == CLASSES
        shares = sum(area.area_share for area in mask.classes) + mask.background_share
        assert shares == pytest.approx(1)
        # The mask is small enough that no instance is left out.
        own = [one.mask for one in mask.instances if one.label == 1]
        joined = np.any(own, axis=0) if own else np.False_
        np.testing.assert_array_equal(mask.labels == 1, joined)
    assert best.probability >= 0.5
    assert colors.shape == (30, 40, 3)
    assert (model.name, model.embed_dim, model.native_size) == ("fake", 8, 28)
    assert "depth" in model.outputs
    assert (model.limits["max_images"], model.limits["max_texts"]) == (32, 2048)
    assert set(model.limits) == set(LIMITS)


async def test_errors_say_what_and_where(encode_image: Encode, client: Any) -> None:
    image = encode_image()
    for kind, code, param, index, call in (
        (InvalidRequest, "invalid_image", "images[1]", 1, client.embed_images([image, b"x"])),
        (InvalidRequest, "blank_text", "texts[1]", 1, client.embed_texts(["dog", " "])),
        (NotFound, "model_not_found", "model", None, client.normals(image, model="unknown")),
        (RequestTooLarge, "too_many_items", "images", None, client.embed_images([image] * 33)),
    ):
        with pytest.raises(kind) as caught:
            await call
        error = caught.value
        assert (error.param, error.index) == (param, index)
        assert code in {None, error.code}
        assert error.message
        assert error.request_id
    assert len(await client.embed_images(image)) == 1


async def test_an_unknown_word_is_refused_with_the_words_there_are(
    encode_image: Encode, client: Any
) -> None:
    image = encode_image()
    for method, name, words in (
        ("segment", "mode", "'whole' or 'slide'"),
        ("segment", "size", "'image', 'model' or 'patch'"),
        ("segment", "quality", "'published', 'fast' or 'fine'"),
        ("segment", "background", "'none' or 'auto'"),
        ("depth", "size", "'image' or 'model'"),
        ("depth", "fit", "'squash' or 'aspect'"),
        ("features", "kind", "'colors', 'component' or 'groups'"),
        ("features", "scope", "'image' or 'request'"),
        ("classify", "features", "'cls1' or 'cls2'"),
        ("embed_images", "dtype", "'float32', 'float16' or 'int8'"),
        ("embed_texts", "dtype", "'float32', 'float16' or 'int8'"),
        ("embed_texts", "templates", "'none' or 'tcl'"),
    ):
        given = ["dog"] if method == "embed_texts" else image
        classes = [CLASSES] if method in {"segment", "classify"} else []
        with pytest.raises(InvalidRequest) as caught:
            await getattr(client, method)(given, *classes, **{name: "odd"})
        assert (caught.value.code, caught.value.param) == ("invalid_field", name)
        assert caught.value.message.startswith(f"{name}: Input should be {words}")
    with pytest.raises(InvalidRequest, match=r"outputs\[1\].*'odd'") as caught:
        await client.embed_images(image, outputs=["patches", "odd"])
    assert (caught.value.code, caught.value.param) == ("unknown_output", "outputs[1]")
    streamed = [item async for item in client.stream_images([image] * 2, fit="odd")]
    assert [item.error.param for item in streamed] == ["fit", "fit"]


async def test_a_key_is_sent(
    serving: Serving, encode_image: Encode, asking: Asking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.rest.middleware.WRONG_KEY_DELAY_S", 0.0)
    async with serving(api_keys=KEY) as server:
        async with asking.client(server, api_key=KEY) as client:
            assert len(await client.embed_images(encode_image())) == 1
            assert [i.index async for i in client.stream_images([encode_image()])] == [0]
        async with asking.client(server, api_key="another-key") as client:
            with pytest.raises(Unauthenticated):
                await client.embed_images(encode_image(), partial=True)
            with pytest.raises(Unauthenticated):
                [item async for item in client.stream_images([encode_image()])]


async def test_the_server_receives_the_deadline(
    serving: Serving, encode_image: Encode, asking: Asking, runtime: FakeRuntime
) -> None:
    async with serving() as server, asking.client(server, timeout_s=0.3) as client:
        runtime.gate.clear()
        with pytest.raises(DeadlineExceeded):
            await client.embed_images(encode_image())
        await until(lambda: inflight(server) == 0)


@BOTH
async def test_a_cancelled_request_is_not_computed(
    serving: Serving, encode_image: Encode, protocol: str, runtime: FakeRuntime, entered: Entered
) -> None:
    async with serving() as server, Asking(protocol, is_async=True).client(server) as client:
        runtime.gate.clear()
        asked = asyncio.ensure_future(client.embed_images(encode_image()))
        assert await entered()
        asked.cancel()
        await until(lambda: inflight(server) == 0)
        await asyncio.gather(asked, return_exceptions=True)


async def test_number_formats_differ_within_their_precision(
    encode_image: Encode, client: Any
) -> None:
    images = [encode_image(seed=seed, size=(60, 40 + 20 * seed)) for seed in range(2)]
    found: dict[str, dict[str, Any]] = {}
    for dtype in KINDS:
        options = {"outputs": EVERY, "dtype": dtype}
        partial = await client.embed_images(images, partial=True, **options)
        found[dtype] = {
            "images": await client.embed_images(images, **options),
            "aspect": await client.embed_images(images, fit="aspect", **options),
            "stream": [one.result() async for one in client.stream_images(images, **options)],
            "partial": [one.result() for one in partial],
            "texts": [await client.embed_texts(CLASSES, dtype=dtype)],
        }
    assert {dtype: type(one["images"][0]) for dtype, one in found.items()} == KINDS
    for way in found["int8"]:
        for given in zip(*(found[dtype][way] for dtype in KINDS), strict=True):
            if way == "texts":
                check(*given)
            else:
                for name in EVERY:
                    check(*(getattr(one, name) for one in given))


def check(true: Any, float16: Any, int8: Any) -> None:
    """Compare the number formats with float32."""
    assert (true.dtype, float16.dtype) == (np.float32, np.float16)
    np.testing.assert_allclose(float16, true, rtol=1e-3, atol=1e-6)
    assert isinstance(int8, Int8Vectors)
    assert (int8.values.shape, int8.scales.shape) == (true.shape, true.shape[:-1])
    # Batches of different sizes may differ in the last bits of float32.
    assert (np.abs(int8.to_float32() - true) <= 0.5 * int8.scales[..., None] + 1e-6).all()


def test_int8_vectors_can_be_pickled_and_compared() -> None:
    vectors = Int8Vectors(values=np.ones((2, 6), np.int8), scales=np.ones(2, np.float32))
    embedding = Int8ImageEmbedding(cls1=vectors)
    assert_equal(pickle.loads(pickle.dumps(embedding)), embedding)
    assert embedding == embedding  # noqa: PLR0124  # without comparing arrays


def error_facts(error: Any) -> tuple[Any, ...]:
    return type(error), error.code, error.message, error.param, error.index


async def test_a_bad_image_among_good_ones_keeps_its_place(
    encode_image: Encode, client: Any
) -> None:
    good = [encode_image(seed=seed) for seed in range(2)]
    given = [good[0], b"no image", good[1], "/no/such/file.jpg"]
    for call in CALLS.values():
        items = await call(client, given, partial=True)
        alone = await call(client, good)
        whole = await call(client, good, partial=True)
        with pytest.raises(InvalidRequest) as caught:
            await call(client, given[:3])
        assert [item.index for item in items] == [0, 1, 2, 3]
        assert_equal([items[0].result(), items[2].result()], alone)
        assert_equal([item.result() for item in whole], alone)
        # The same error as without `partial`; the unreadable file was never sent.
        assert error_facts(items[1].error) == error_facts(caught.value)
        assert items[1].error.request_id
        assert (items[3].error.code, items[3].error.index) == ("unreadable_file", 3)
        with pytest.raises(InvalidRequest):
            items[1].result()
    for images, options, kind in (
        ([good[0], b"x"], {"resolution": 15}, InvalidRequest),
        ([], {}, InvalidRequest),
        ([good[0]] * 33, {}, RequestTooLarge),
    ):
        with pytest.raises(kind):  # of the whole request
            await client.embed_images(images, partial=True, **options)


class SlowImage:
    """A PIL image whose encoding ends only after the event loop has run."""

    def __init__(self, encoded: bytes) -> None:
        self._encoded = encoded
        self.is_begun, self.may_end = threading.Event(), threading.Event()

    def save(self, fp: Any, format: str) -> None:
        self.is_begun.set()
        assert self.may_end.wait(LIMIT_S), f"the event loop was blocked while saving as {format}"
        fp.write(self._encoded)


async def embed_both(client: AsyncClient, image: Any, other: bytes) -> list[Any]:
    return list(await client.embed_images([other, image]))


async def stream_both(client: AsyncClient, image: Any, other: bytes) -> list[Any]:
    async def images() -> AsyncIterator[Any]:
        yield other
        yield image

    return [item.result() async for item in client.stream_images(images())]


@BOTH
@pytest.mark.parametrize("ask", [embed_both, stream_both])
async def test_the_event_loop_runs_while_an_image_is_encoded(
    serving: Serving,
    encode_image: Encode,
    protocol: str,
    ask: Callable[[AsyncClient, Any, bytes], Awaitable[list[Any]]],
) -> None:
    encoded, other = encode_image(seed=1), encode_image(seed=2)
    slow = SlowImage(encoded)
    async with serving() as server, Asking(protocol, is_async=True).client(server) as client:
        asked = asyncio.ensure_future(ask(client, slow, other))
        await until(slow.is_begun.is_set)
        slow.may_end.set()
        assert_equal(await asked, await ask(client, encoded, other))


async def test_client_and_server_present_certificates(
    serving: Serving, encode_image: Callable[..., bytes], asking: Asking, tmp_path: Path
) -> None:
    authority = trustme.CA()
    for name, host in (("server", "127.0.0.1"), ("client", "client.example")):
        certificate = authority.issue_cert(host)
        certificate.private_key_pem.write_to_path(tmp_path / f"{name}.key")
        certificate.cert_chain_pems[0].write_to_path(tmp_path / f"{name}.pem")
    ca = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(ca)
    files = {"tls_cert": tmp_path / "server.pem", "tls_key": tmp_path / "server.key"}
    tls = Tls(ca=ca, cert=tmp_path / "client.pem", key=tmp_path / "client.key")
    once = Retry(max_attempts=1)
    async with serving(**files, tls_client_ca=ca) as server:
        async with asking.client(server, is_secure=True, tls=tls) as client:
            assert len(await client.embed_images(encode_image())) == 1
        async with asking.client(server, is_secure=True, tls=Tls(ca=ca), retry=once) as client:
            with pytest.raises(Unavailable):
                await client.embed_images(encode_image(), timeout_s=10)


def check_types(client: Client) -> None:
    """Not called: mypy checks that the type of a result follows from `dtype` and `partial`."""
    if TYPE_CHECKING:
        assert_type(client.embed_texts(["a"], dtype="int8"), Int8Vectors)
        assert_type(client.embed_texts(["a"], dtype="float16"), HalfArray)
        assert_type(client.embed_texts(["a"], partial=True), list[Item[FloatArray]])
        assert_type(client.embed_images(b""), list[ImageEmbedding])
        assert_type(client.embed_images(b"", dtype="int8"), list[Int8ImageEmbedding])
        assert_type(client.embed_images(b"", partial=True), list[Item[ImageEmbedding]])
        assert_type(client.depth(b""), list[FloatArray])
        items = client.stream_images([b""], dtype="float16")
        assert_type(next(items).value, HalfImageEmbedding | None)
