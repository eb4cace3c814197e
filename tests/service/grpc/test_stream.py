"""Requests of a stream are answered in order, within limits of memory and time."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
import pytest

from service.grpc.generated import embed_pb2, image_pb2, stream_pb2
from service.grpc.generated.encoder_service_pb2_grpc import EncoderServiceStub
from service.grpc.stream import StreamItem
from service.server import Server
from tests.service.callers import LIMIT_S, grpc_channel
from tests.service.conftest import Encode, Entered, FakeRuntime, Serving, sample, until

Answer = stream_pb2.StreamResponse
METHOD = "tipserve.v1.EncoderService/Stream"
# Of an image as the fake model sees it by default: 28 x 28 pixels.
PATCHES = 4


def embed(image: bytes, item_id: str = "", timeout_s: float | None = None, **fields: Any) -> Any:
    asked = embed_pb2.EmbedImagesRequest(images=[image_pb2.Image(encoded=image)], **fields)
    request = stream_pb2.StreamRequest(id=item_id, embed_images=asked)
    if timeout_s is not None:
        request.timeout.FromNanoseconds(int(1e9 * timeout_s))
    return request


@asynccontextmanager
async def connected(server: Server) -> AsyncIterator[Any]:
    async with grpc_channel(server) as channel:
        yield EncoderServiceStub(channel)


async def ask(server: Server, requests: Iterable[Any]) -> list[Answer]:
    """All answers of one stream."""
    async with connected(server) as stub:
        return [answer async for answer in stub.Stream(iter(requests), timeout=LIMIT_S)]


async def code_of(call: Any) -> str:
    return str((await call.code()).name)


async def test_a_stream_without_requests_is_ended(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.grpc.interceptor.RECEIVE_LIMIT_S", 0.1)
    async with serving(request_timeout_s=0.2) as server, connected(server) as stub:
        call = stub.Stream(timeout=LIMIT_S)
        assert await code_of(call) == "DEADLINE_EXCEEDED"
        assert "was idle" in await call.details()


async def test_an_invalid_request_is_answered_by_its_own_error(
    serving: Serving, encode_image: Encode
) -> None:
    good = embed(encode_image(), "good")
    unknown = embed(encode_image(), "unknown", model="other")
    newer = embed(encode_image(), "newer")
    newer.MergeFromString(b"\xa2\x06\x01x")  # field 100
    nothing = stream_pb2.StreamRequest(id="nothing")
    late = embed(encode_image(), "never", timeout_s=0)
    requests = [good, embed(b"no image", "bad"), unknown, nothing, late, newer]
    messages = [*(r.SerializeToString() for r in requests), b"\xff\xff", good.SerializeToString()]
    async with serving() as server, grpc_channel(server) as channel:
        call: Any = channel.stream_stream(f"/{METHOD}")
        answers = [Answer.FromString(a) async for a in call(iter(messages), timeout=LIMIT_S)]
    assert [(a.id, a.index, a.error.code, a.error.reason, a.error.field) for a in answers] == [
        ("good", 0, 0, "", ""),
        ("bad", 1, 3, "invalid_image", "images[0]"),
        ("unknown", 2, 5, "model_not_found", "model"),
        ("nothing", 3, 3, "missing_field", "request"),
        ("never", 4, 3, "invalid_field", "timeout"),
        ("newer", 5, 3, "unknown_field", ""),
        ("", 6, 3, "malformed_message", ""),
        ("good", 7, 0, "", ""),
    ]
    assert all(answer.error.message and answer.error.request_id for answer in answers[1:7])
    assert answers[0].embed_images == answers[7].embed_images


async def test_a_full_queue_makes_a_stream_wait_and_a_unary_rpc_goes_before_it(
    serving: Serving,
    encode_image: Encode,
    runtime: FakeRuntime,
    entered: Entered,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.grpc.stream.MAX_REQUESTS", 8)
    requests = [embed(encode_image(seed=seed), str(seed)) for seed in range(30)]
    limits = {"max_queue_patches": 8 * PATCHES, "max_batch_patches": 2 * PATCHES}
    async with serving(**limits) as server, connected(server) as stub:
        runtime.gate.clear()
        stream = asyncio.ensure_future(ask(server, requests))
        assert await entered()
        await until(lambda: sample(server.metrics, "inflight") == 4)
        alone = asyncio.ensure_future(code_of(stub.EmbedImages(requests[0].embed_images)))
        await until(lambda: sample(server.metrics, "inflight") == 5)
        runtime.gate.set()
        assert await alone == "OK"
        assert not stream.done()
        assert [answer.id for answer in await stream] == [str(seed) for seed in range(30)]
        assert sample(server.metrics, "rejected_total", reason="queue_full") == 0


async def test_the_deadline_of_one_request_does_not_end_the_others(
    serving: Serving, encode_image: Encode, runtime: FakeRuntime, entered: Entered
) -> None:
    late = embed(encode_image(seed=1), "late", timeout_s=0.1)
    requests = [embed(encode_image(), "first"), late, embed(encode_image(seed=2), "last")]
    async with serving() as server:
        runtime.gate.clear()
        asking = asyncio.ensure_future(ask(server, requests))
        assert await entered()
        ended = {"protocol": "grpc", "method": METHOD, "code": "DEADLINE_EXCEEDED"}
        await until(lambda: sample(server.metrics, "requests_total", **ended) == 1)
        runtime.gate.set()
        answers = await asking
    assert [(a.id, a.error.reason) for a in answers] == [
        ("first", ""),
        ("late", "deadline_exceeded"),
        ("last", ""),
    ]


@pytest.mark.parametrize("ending", ["deadline", "cancelled"])
async def test_a_stream_that_ends_frees_queue_memory_and_decoding(
    serving: Serving, encode_image: Encode, runtime: FakeRuntime, entered: Entered, ending: str
) -> None:
    requests = [embed(encode_image(seed=seed)) for seed in range(30)]
    limits = {"max_queue_patches": 8 * PATCHES, "max_batch_patches": 8 * PATCHES}
    async with serving(**limits) as server, connected(server) as stub:
        runtime.gate.clear()
        timeout_s = 2.0 if ending == "deadline" else LIMIT_S
        call = stub.Stream(iter(requests), timeout=timeout_s)
        assert await entered()
        if ending == "cancelled":
            await until(lambda: sample(server.metrics, "inflight") == 4)
            call.cancel()
        # INTERNAL is grpc.aio's own, where it is still sending as its deadline passes.
        ended = {"deadline": {"DEADLINE_EXCEEDED", "INTERNAL"}, "cancelled": {"CANCELLED"}}[ending]
        assert await code_of(call) in ended
        await until(lambda: sample(server.metrics, "inflight") == 0)
        await until(lambda: server.admission.num_requests == 0)
        budget = server.models.models()[0].budget
        assert (budget.num_patches, budget.fits_streams(8 * PATCHES)) == (0, True)
        runtime.gate.set()
        assert len(await ask(server, requests[:1])) == 1
    assert runtime.num_images < 10  # a batch may have been under way


async def test_a_stopping_server_answers_what_it_has_read_and_is_unavailable(
    serving: Serving,
    encode_image: Encode,
    runtime: FakeRuntime,
    entered: Entered,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image = encode_image("BMP", size=(300, 300))
    requests = [embed(image, str(seed)) for seed in range(30)]
    monkeypatch.setattr("service.grpc.stream.MAX_REQUESTS", 4)
    # Not grpc.aio: where it is still sending as the server ends the RPC, it makes a status of its
    # own, INTERNAL, and forgets the server's.
    async with serving() as server:
        with grpc.insecure_channel(f"127.0.0.1:{server.ports['grpc']}") as channel:
            runtime.gate.clear()
            call = EncoderServiceStub(channel).Stream(iter(requests), timeout=LIMIT_S)
            taking = asyncio.ensure_future(asyncio.to_thread(take, call))
            assert await entered()
            await until(lambda: sample(server.metrics, "inflight") == 4)
            server.request_stop()
            await until(lambda: server.admission.state.value == "stopping")
            runtime.gate.set()
            answers = await taking
            assert call.code() is grpc.StatusCode.UNAVAILABLE
            metadata = dict(call.trailing_metadata())
    assert metadata["grpc-retry-pushback-ms"] == "2000"
    assert 4 <= len(answers) < 30
    assert all(answer.HasField("embed_images") for answer in answers)


def take(call: Any) -> list[Answer]:
    """The answers of a call before it ends with an error."""
    answers: list[Answer] = []
    with suppress(grpc.RpcError):
        answers.extend(call)
    return answers


def test_a_request_that_was_not_parsed_keeps_no_bytes_outside_the_budget() -> None:
    item = StreamItem(b"malformed", 0)  # the stream holds it until the next one comes
    item.release()
    assert not item.raw
