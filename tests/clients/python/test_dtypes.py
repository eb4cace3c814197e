"""Embeddings as float16, and as int8 with their scales: the same numbers by every way."""

import pickle
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from service.outputs.vectors import pack
from service.server import Server
from tests.clients.python.comparison import assert_equal
from tipserve_client import (
    AsyncClient,
    Client,
    HalfImageEmbedding,
    ImageEmbedding,
    Int8ImageEmbedding,
    Int8Vectors,
    InvalidRequest,
)

if TYPE_CHECKING:
    from typing import assert_type

    from tests.clients.python.conftest import Asking
    from tipserve_client.results import HalfArray

Serving = Callable[..., AbstractAsyncContextManager[Server]]
Encode = Callable[..., bytes]
EVERY = ("cls1", "cls2", "patches", "values")


async def asked(client: Any, images: list[bytes], dtype: str | None) -> dict[str, Any]:
    """Of every way to ask for embeddings, its answer."""
    told = {"outputs": EVERY, "dtype": dtype}
    return {
        "images": await client.embed_images(images, **told),
        "aspect": await client.embed_images(images, fit="aspect", **told),
        "stream": [item.result() async for item in client.stream_images(images, **told)],
        "partial": [i.result() for i in await client.embed_images(images, partial=True, **told)],
        "texts": await client.embed_texts(["dog", "sky"], dtype=dtype),
    }


async def test_every_way_gives_the_same_within_half_a_step(
    serving: Serving, encode_image: Encode, asking: "Asking"
) -> None:
    images = [encode_image(seed=seed, size=(60, 40 + 20 * seed)) for seed in range(2)]
    async with serving() as server, asking.client(server) as client:
        exact = await asked(client, images, None)
        named = await asked(client, images, "float32")
        half = await asked(client, images, "float16")
        small = await asked(client, images, "int8")
    for way in ("images", "aspect", "stream", "partial"):
        for float32, same, float16, int8 in zip(
            exact[way], named[way], half[way], small[way], strict=True
        ):
            kinds = (ImageEmbedding, ImageEmbedding, HalfImageEmbedding, Int8ImageEmbedding)
            for embedding, kind in zip((float32, same, float16, int8), kinds, strict=True):
                assert type(embedding) is kind
            for name in EVERY:
                true = getattr(float32, name)
                np.testing.assert_array_equal(getattr(same, name), true)
                check(true, getattr(float16, name), getattr(int8, name))
    check(exact["texts"], half["texts"], small["texts"])


def check(true: Any, float16: Any, int8: Any) -> None:
    """The numbers that the server rounds to, and what becomes of them."""
    assert float16.dtype == np.float16
    np.testing.assert_allclose(float16, true, rtol=1e-3, atol=1e-6)
    assert isinstance(int8, Int8Vectors)
    assert [int8.values.dtype, int8.scales.dtype] == [np.dtype("int8"), np.dtype("float32")]
    assert int8.values.shape == true.shape
    assert int8.scales.shape == true.shape[:-1]
    again = int8.to_float32()
    assert (again.dtype, again.shape) == (true.dtype, true.shape)
    # A batch of another size may round another way in the last bits of float32.
    assert (np.abs(again - true) <= 0.5 * int8.scales[..., None] + 1e-6).all()


async def test_both_protocols_give_the_same_numbers(serving: Serving, encode_image: Encode) -> None:
    images = [encode_image(seed=seed) for seed in range(2)]
    async with serving() as server:
        for dtype in ("float16", "int8"):
            found = []
            for protocol in ("http", "grpc"):
                url = f"{protocol}://127.0.0.1:{server.ports[protocol]}"
                async with AsyncClient(url) as client:
                    found.append(await asked(client, images, dtype))
            for way, over_http in found[0].items():
                assert_equal(over_http, found[1][way])


async def test_an_unknown_dtype_is_the_servers_to_refuse(
    serving: Serving, encode_image: Encode, asking: "Asking"
) -> None:
    ways: list[Callable[[Any], Awaitable[Any]]] = [
        lambda client: client.embed_images(encode_image(), dtype="int4"),
        lambda client: client.embed_texts(["dog"], dtype="int4"),
    ]
    async with serving() as server, asking.client(server) as client:
        for way in ways:
            with pytest.raises(InvalidRequest) as caught:
                await way(client)
            assert caught.value.param == "dtype"
        with pytest.raises(TypeError, match="no option 'dtype'"):
            await client.segment(encode_image(), ["dog"], dtype="int8")


@pytest.mark.parametrize("shape", [(6,), (3, 6), (2, 3, 6)])
def test_whole_numbers_times_their_scales(shape: tuple[int, ...]) -> None:
    true = np.random.default_rng(0).standard_normal(shape, np.float32)
    true.flat[:6] = 0  # a vector of zeros stays one
    values, scales = pack(true, "int8")
    assert scales is not None
    vectors = Int8Vectors(values=values.astype(np.int8), scales=scales)
    assert (np.abs(vectors.to_float32() - true) <= 0.5001 * scales[..., None]).all()
    assert_equal(pickle.loads(pickle.dumps(vectors)), vectors)
    embedding = Int8ImageEmbedding(cls1=vectors)
    assert_equal(pickle.loads(pickle.dumps(embedding)), embedding)
    assert embedding == embedding  # noqa: PLR0124  # arrays inside are no obstacle


def typed(client: Client) -> None:
    """For the type checker: an answer's type follows from `dtype`."""
    if TYPE_CHECKING:
        assert_type(client.embed_texts(["a"], dtype="int8"), Int8Vectors)
        assert_type(client.embed_texts(["a"], dtype="float16"), HalfArray)
        assert_type(client.embed_images(b"", dtype="int8"), list[Int8ImageEmbedding])
        items = client.stream_images([b""], dtype="float16")
        assert_type(next(items).value, HalfImageEmbedding | None)
