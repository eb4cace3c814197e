"""A server that decodes JPEG images on a device answers as one that does not, over all protocols.

nvImageCodec's own CPU decoder stands for the GPU.
"""

import asyncio
import io
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest

from model.jpeg_device import JpegDevice
from model.parity.inputs import FOLDER
from service.grpc.generated import embed_pb2, image_pb2
from service.server import Server
from tests.model.stand_in_codec import StandInCodec
from tests.service.callers import (
    ALL,
    BOTH,
    INVALID,
    LIMIT_S,
    OK,
    Answer,
    Ask,
    ask_grpc,
    ask_rest,
    call_rpc,
)
from tests.service.conftest import Encode, Serving, until

FILES = {path.stem: path.read_bytes() for path in sorted((FOLDER / "gate").glob("*.jpg"))}
# For the fake model of 28 pixels `fast` would reduce all of them, on the CPU.
SETTINGS = {"jpeg_decode": "exact"}
NUM_AT_ONCE = 24


@pytest.fixture
def codec(monkeypatch: pytest.MonkeyPatch) -> StandInCodec:
    """A GPU that nvImageCodec can use."""
    found = StandInCodec()
    monkeypatch.setitem(sys.modules, "nvidia", SimpleNamespace(nvimgcodec=found))
    return found


def of_device(codec: StandInCodec, before: int) -> int:
    """Images that the device was given since then."""
    return codec.num_decoded - before


async def ask_each(ask: Ask, server: Server, images: list[bytes]) -> list[Answer]:
    return [await ask(server, image) for image in images]


def content(answer: Answer) -> tuple[object, ...]:
    """What the answer says; the details of an RPC name its connection."""
    is_rest = answer.status.isdigit()
    return answer.status, answer.code, answer.text if is_rest else answer.messages


@ALL
async def test_answers_and_errors_are_those_of_a_server_that_decodes_on_the_cpu(
    serving: Serving, codec: StandInCodec, encode_image: Encode, ask: Ask
) -> None:
    photograph = FILES["fruits"]
    noise: dict[str, Any] = {"size": (300, 300), "quality": 90}
    plain = [
        photograph,
        FILES["room"],
        encode_image("JPEG", **noise, progressive=True),
        encode_image("JPEG", **noise, mode="L"),
        photograph[: len(photograph) // 2] + b"\xff\xd9",
    ]
    others = [
        encode_image("JPEG", **noise, mode="CMYK"),
        encode_image("PNG"),
        encode_image("JPEG"),
        photograph[: len(photograph) // 2],
        b"\xff\xd8 is no image",
    ]
    async with serving(**SETTINGS) as server:
        expected = await ask_each(ask, server, plain + others)
    async with serving(**SETTINGS, jpeg_device="gpu") as server:
        before = codec.num_decoded
        given = await ask_each(ask, server, plain + others)
    assert of_device(codec, before) == len(plain)
    assert [content(answer) for answer in given] == [content(answer) for answer in expected]
    statuses = [answer.status for answer in given]
    assert set(statuses[:-2]) <= OK
    assert set(statuses[-2:]) <= INVALID


async def embed_together(server: Server, images: list[bytes]) -> list[bytes]:
    """A request of many images, by REST and by gRPC; the embeddings as bytes."""
    files = [("images", (f"{i}", image, "image/jpeg")) for i, image in enumerate(images)]
    url = f"http://127.0.0.1:{server.ports['http']}/v1/images:embed"
    async with httpx.AsyncClient(timeout=LIMIT_S) as client:
        answer = await client.post(url, files=files, headers={"Accept": "application/x-npy"})
    assert answer.status_code == 200, answer.text
    rest = np.load(io.BytesIO(answer.content))
    message = embed_pb2.EmbedImagesRequest(images=[image_pb2.Image(encoded=i) for i in images])
    rpc = "/tipserve.v1.EncoderService/EmbedImages"
    (raw,) = (await call_rpc(server, rpc, message.SerializeToString())).messages
    return [np.ascontiguousarray(rest).tobytes(), raw]


async def test_a_batch_of_many_images_is_decoded_on_the_device(
    serving: Serving, codec: StandInCodec, encode_image: Encode
) -> None:
    images = [*FILES.values(), encode_image("PNG"), encode_image("JPEG", size=(300, 300))]
    async with serving(**SETTINGS) as server:
        expected = await embed_together(server, images)
    async with serving(**SETTINGS, jpeg_device="gpu", pool_threads=4) as server:
        before = codec.num_decoded
        assert await embed_together(server, images) == expected
    assert of_device(codec, before) == 2 * (len(images) - 1)


@BOTH
async def test_the_cpu_decodes_while_the_device_fails(
    serving: Serving, codec: StandInCodec, ask: Ask
) -> None:
    async with serving(**SETTINGS, jpeg_device="gpu") as server:
        expected = await ask(server, FILES["fruits"])
        codec.fault = RuntimeError("CUDA Runtime failure: '#2'")
        before = codec.num_decoded
        given = await ask(server, FILES["fruits"])
        assert of_device(codec, before) == 1
    assert expected.status in OK
    assert content(given) == content(expected)


@BOTH
async def test_concurrent_requests_are_decoded_on_the_device(
    serving: Serving, codec: StandInCodec, ask: Ask
) -> None:
    images = [list(FILES.values())[i % len(FILES)] for i in range(NUM_AT_ONCE)]
    async with serving(**SETTINGS, jpeg_device="gpu", pool_threads=4) as server:
        alone = {image: content(await ask(server, image)) for image in FILES.values()}
        before = codec.num_decoded
        answers = await asyncio.gather(*(ask(server, image) for image in images))
        assert of_device(codec, before) == NUM_AT_ONCE
    assert [content(answer) for answer in answers] == [alone[image] for image in images]


@BOTH
async def test_a_caller_who_leaves_is_not_decoded_and_the_next_is(
    serving: Serving, codec: StandInCodec, monkeypatch: pytest.MonkeyPatch, ask: Ask
) -> None:
    entered: list[object] = []
    release = threading.Event()
    decode: Callable[..., Any] = JpegDevice.decode

    def held(*given: Any) -> Any:
        entered.append(given)
        assert release.wait(LIMIT_S)
        return decode(*given)

    async with serving(**SETTINGS, jpeg_device="gpu") as server:
        monkeypatch.setattr(JpegDevice, "decode", held)
        before = codec.num_decoded
        requests = [asyncio.ensure_future(ask(server, FILES["room"])) for _ in range(5)]
        # The pool's only thread decodes one, an idle lane perhaps another; the others wait.
        await until(lambda: bool(entered) and server.gate.num_in_flight == len(requests))
        for request in requests:
            request.cancel()
            with suppress(asyncio.CancelledError):
                await request
        await until(lambda: server.gate.num_in_flight == 0)
        num_begun = len(entered)
        release.set()
        last = await ask(server, FILES["meadow"])
        assert last.status in OK
    assert num_begun <= 2
    assert of_device(codec, before) == num_begun + 1


async def test_images_on_the_device_share_the_memory_for_images(
    serving: Serving, codec: StandInCodec, encode_image: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two images of 0.8 megapixels, one at a time fits: the device takes 7 bytes a pixel."""
    image = encode_image("JPEG", size=(1000, 800), quality=50)
    most, lock, num = 0, threading.Lock(), 0
    held: list[int] = []
    decode: Callable[..., Any] = JpegDevice.decode
    limit = 10_000_000

    async with serving(
        **SETTINGS, jpeg_device="gpu", pool_threads=4, max_work_memory_bytes=limit
    ) as server:

        def counted(*given: Any) -> Any:
            nonlocal most, num
            with lock:
                num += 1
                most = max(most, num)
            held.append(server.plane.work_memory.num_bytes)
            try:
                return decode(*given)
            finally:
                with lock:
                    num -= 1

        monkeypatch.setattr(JpegDevice, "decode", counted)
        answers = await asyncio.gather(
            *((ask_rest, ask_grpc)[i % 2](server, image) for i in range(8))
        )
    assert {answer.status for answer in answers} <= OK
    assert most == 1
    assert set(held) == {7 * 1000 * 800}
