"""Answers and images being decoded share a bounded memory."""

import asyncio
import random
import time
from typing import Any

import grpc
import pytest

from service.call import AnswerOrder, Call
from service.errors import Overloaded
from service.grpc.generated import image_pb2, segment_pb2, stream_pb2
from service.grpc.generated.encoder_service_pb2_grpc import EncoderServiceStub
from service.images import ImagePreparer
from service.server import Server
from service.work_memory import Share, WorkMemory
from tests.service.conftest import Encode, Serving, until


def call(seconds: float = 20.0) -> Call:
    return Call(request_id="test", deadline=time.monotonic() + seconds)


async def test_an_answer_holds_its_memory_until_it_is_sent(
    serving: Serving, encode_image: Encode
) -> None:
    image = encode_image(size=(1200, 1200))
    head = (
        "POST /v1/images:segment?classes=dog&include_scores=true HTTP/1.1\r\nHost: localhost\r\n"
        f"Accept: application/octet-stream\r\nContent-Type: image/png\r\n"
        f"Content-Length: {len(image)}\r\n\r\n"
    )
    async with serving() as server:
        memory = server.plane.work_memory
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", server.ports["http"], limit=4096
        )
        writer.write(head.encode() + image)
        await reader.readuntil(b"\r\n\r\n")
        for _ in range(20):
            await asyncio.sleep(0.01)
            assert memory.num_bytes == 7 * 1200 * 1200
        async with asyncio.timeout(20):
            left = 6 * 1200 * 1200
            while left > 0:
                left -= len(await reader.read(65536))
        await until(lambda: memory.num_bytes == 0)
        writer.close()


async def test_flows_take_turns_for_memory() -> None:
    memory = WorkMemory(100, 1000)
    order: list[str] = []

    async def hold(flow: str) -> None:
        held = call()
        held.flow = flow
        await memory.hold(held, 100)
        order.append(flow)
        held.free_memory()

    first = call()
    await memory.hold(first, 100)
    waiting = asyncio.gather(*map(hold, ["crowd", "crowd", "crowd", "other"]))
    await until(lambda: memory.is_contended)
    first.free_memory()
    await waiting
    assert order == ["crowd", "other", "crowd", "crowd"]
    assert memory.num_bytes == 0


async def test_memory_is_given_in_order_and_a_request_that_waits_too_long_is_refused() -> None:
    memory = WorkMemory(100, 100)
    first, second, small, late = call(), call(), call(), call(0.05)
    await memory.hold(first, 60)
    order: list[str] = []

    async def wait(name: str, num_bytes: int, waiting: Call) -> None:
        await memory.hold(waiting, num_bytes)
        order.append(name)

    tasks = [
        asyncio.ensure_future(wait("second", 60, second)),
        asyncio.ensure_future(wait("small", 10, small)),  # it would fit, but it came later
    ]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded) as caught:
        await memory.hold(late, 10)
    assert caught.value.code == "work_memory_full"
    assert order == []
    first.free_memory()
    first.free_memory()
    await asyncio.gather(*tasks)
    assert order == ["second", "small"]
    assert memory.num_bytes == 70
    second.free_memory()
    small.free_memory()
    assert memory.num_bytes == 0


async def test_a_caller_that_leaves_the_queue_holds_nothing() -> None:
    memory = WorkMemory(100, 100)
    first, last = call(), call()
    await memory.hold(first, 100)
    leaving = asyncio.ensure_future(memory.hold(call(), 100))
    waiting = asyncio.ensure_future(memory.hold(last, 100))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    first.free_memory()
    await waiting
    assert memory.num_bytes == 100
    # Admitted, and cancelled before it has noticed.
    leaving = asyncio.ensure_future(memory.hold(call(), 100))
    await asyncio.sleep(0)
    last.free_memory()
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    assert memory.num_bytes == 0


async def test_images_are_decoded_in_the_memory_of_their_answer() -> None:
    memory = WorkMemory(100, 100)
    one, other = call(), call()
    share = await memory.hold(one, 60, 80)
    assert memory.num_bytes == 80
    share.decoded()
    assert memory.num_bytes == 60
    one.free_memory()
    assert memory.num_bytes == 0
    # The caller leaves while its image is decoded.
    share = await memory.hold(other, 60, 80)
    other.free_memory()
    assert memory.num_bytes == 80
    share.decoded()
    share.decoded()
    assert memory.num_bytes == 0
    # An image that needs more than all memory is decoded alone.
    alone = memory.hold_now(call(), 0, 1000)
    assert alone is not None
    assert memory.hold_now(call(), 1, 0) is None
    alone.decoded()
    assert memory.num_bytes == 0


async def test_readers_are_hurried_by_requests_that_wait_for_answers_only() -> None:
    memory = WorkMemory(100, 100)
    reader = call()
    await memory.hold(reader, 30)
    decoding = memory.hold_now(call(), 0, 60)
    assert decoding is not None
    waiting = asyncio.ensure_future(memory.hold(call(), 0, 70))
    await asyncio.sleep(0)
    contended = [memory.is_contended]
    wider = asyncio.ensure_future(memory.hold(call(), 0, 80))
    decoding.decoded()
    (await waiting).decoded()
    contended.append(memory.is_contended)
    assert contended == [False, True], "the first waits for an image of another request"
    reader.free_memory()
    (await wider).decoded()
    assert memory.num_bytes == 0


class Holders:
    """Requests of random sizes that hold memory, some of them in streams, some of them cancelled.

    `real_bytes` is what their images and answers would take.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.memory = WorkMemory(100, 100)
        self.real_bytes = self.most_bytes = self.num_done = 0

    async def take(self, num_bytes: int) -> None:
        self.real_bytes += num_bytes
        self.most_bytes = max(self.most_bytes, self.real_bytes)
        assert self.real_bytes <= self.memory.num_bytes <= 100
        try:
            for _ in range(self.random.randrange(4)):
                await asyncio.sleep(0)
        finally:
            self.real_bytes -= num_bytes

    def sizes(self) -> tuple[int, int]:
        answer, decoding = (self.random.choice((0, self.random.randrange(101))) for _ in range(2))
        return answer, decoding

    def new_call(self) -> Call:
        made = call()
        made.flow = self.random.choice("abc")
        return made

    async def decode(self, share: Share, num_bytes: int) -> None:
        try:
            await self.take(num_bytes)
        finally:
            share.decoded()

    async def single(self) -> None:
        held, (answer, decoding) = self.new_call(), self.sizes()
        try:
            now = self.memory.hold_now(held, answer, decoding)
            await self.decode(now or await self.memory.hold(held, answer, decoding), decoding)
            await self.take(answer)
            self.num_done += 1
        finally:
            held.free_memory()

    async def stream(self) -> None:
        """Each answer is sent once all earlier ones are."""
        order = AnswerOrder()
        sent = [asyncio.Event() for _ in range(7)]
        sent[0].set()

        async def one(item: int) -> None:
            held, (answer, decoding) = self.new_call(), self.sizes()
            held.item, held.answer_order = item, order
            try:
                if decoding:
                    await self.decode(await self.memory.hold(held, 0, decoding), decoding)
                await asyncio.sleep(0)
                if answer:
                    await self.memory.hold(held, answer)
                order.passes(item)
                self.real_bytes += answer
                try:
                    await sent[item].wait()
                    await self.take(0)
                finally:
                    self.real_bytes -= answer
                sent[item + 1].set()
                self.num_done += 1
            finally:
                held.free_memory()

        await asyncio.gather(*map(one, range(6)))


@pytest.mark.parametrize("seed", range(20))
async def test_no_requests_wait_for_each_other_or_exceed_the_memory(seed: int) -> None:
    holders = Holders(seed)
    tasks = [asyncio.ensure_future(holders.single()) for _ in range(60)]
    tasks += [asyncio.ensure_future(holders.stream()) for _ in range(4)]
    leaving = [asyncio.ensure_future(holders.single()) for _ in range(20)]
    for task in leaving:
        for _ in range(holders.random.randrange(6)):
            await asyncio.sleep(0)
        task.cancel()
    async with asyncio.timeout(20):
        await asyncio.gather(*tasks)
        await asyncio.gather(*leaving, return_exceptions=True)
    assert holders.num_done >= 60 + 4 * 6
    assert holders.most_bytes > 90
    assert holders.memory.num_bytes == 0
    assert not holders.memory.is_contended


async def test_requests_of_a_stream_take_memory_in_their_order() -> None:
    memory, order = WorkMemory(100, 100), AnswerOrder()
    calls = [call() for _ in range(4)]
    for item, one in enumerate(calls):
        one.item, one.answer_order = item, order
    order.passes(2)  # it failed, or its answer is small
    waiting = [asyncio.ensure_future(memory.hold(calls[item], 60)) for item in (3, 1)]
    await asyncio.sleep(0.01)
    # Else the first could not be sent, and the others neither.
    assert memory.num_bytes == 0
    await memory.hold(calls[0], 60)
    calls[0].free_memory()
    await waiting[1]
    calls[1].free_memory()
    await waiting[0]
    assert memory.num_bytes == 60
    late = call(0.05)
    late.item, late.answer_order = 5, order
    with pytest.raises(Overloaded, match="memory for images and answers is full"):
        await memory.hold(late, 10)


PIXELS = 1200 * 1200


def connected(server: Server) -> grpc.aio.Channel:
    target = f"127.0.0.1:{server.ports['grpc']}"
    # By measuring the connection the client would enlarge its windows, and take a whole answer that
    # is not read.
    options = [("grpc.max_receive_message_length", -1), ("grpc.http2.bdp_probe", 0)]
    return grpc.aio.insecure_channel(target, options)


def scored_mask(encode_image: Encode, num: int = 1) -> list[stream_pb2.StreamRequest]:
    """Requests with answers of 8.6 MB each, which take more until they are sent."""
    request = stream_pb2.StreamRequest(
        segment_images=segment_pb2.SegmentImagesRequest(
            images=[image_pb2.Image(encoded=encode_image(size=(1200, 1200)))],
            classes=[segment_pb2.SegmentClass(name="dog")],
            include_scores=True,
        )
    )
    return [request] * num


@pytest.mark.parametrize("ends", ["read", "cancelled"])
async def test_answers_of_a_stream_hold_their_memory_until_they_are_sent(
    serving: Serving, encode_image: Encode, ends: str
) -> None:
    requests = scored_mask(encode_image, 4)
    # Two answers fit.
    async with serving(max_work_memory_bytes=50 * PIXELS) as server:
        memory = server.plane.work_memory
        async with connected(server) as channel:
            stream = EncoderServiceStub(channel).Stream(iter(requests), timeout=20)
            await until(lambda: memory.is_contended)
            assert memory.num_bytes > 25 * PIXELS
            if ends == "read":
                sizes = [len(one.segment_images.SerializeToString()) async for one in stream]
                assert min(sizes) > 6 * PIXELS
                assert len(sizes) == 4
            else:
                stream.cancel()
            await until(lambda: memory.num_bytes == 0)


async def test_answers_of_a_stream_and_its_images_share_the_memory(
    serving: Serving, encode_image: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An answer takes 21.4 bytes for each pixel until it is sent, and decoding 4.
    async with serving(max_work_memory_bytes=24 * PIXELS) as server:
        memory = server.plane.work_memory
        seen: list[int] = []
        prepare = ImagePreparer.prepare

        def count(preparer: ImagePreparer, *given: Any, param: str) -> Any:
            before = memory.num_bytes
            prepared = prepare(preparer, *given, param=param)
            seen.extend((before, memory.num_bytes))
            return prepared

        monkeypatch.setattr(ImagePreparer, "prepare", count)
        async with connected(server) as channel:
            stream = EncoderServiceStub(channel).Stream(iter(scored_mask(encode_image, 8)))
            assert len([answer async for answer in stream]) == 8
        await until(lambda: memory.num_bytes == 0)
    assert len(seen) == 2 * 8
    assert min(seen) >= 4 * PIXELS
    # While an image is decoded no answer is held: both together do not fit.
    assert max(seen) <= 6 * 4 * PIXELS
    assert all(num_bytes % (4 * PIXELS) == 0 for num_bytes in seen)


@pytest.mark.parametrize("rpc", ["unary", "stream"])
async def test_a_slow_reader_over_grpc_is_ended_once_others_wait_for_memory(
    serving: Serving, encode_image: Encode, monkeypatch: pytest.MonkeyPatch, rpc: str
) -> None:
    monkeypatch.setattr("service.grpc.stream.CONTENDED_LIMIT_S", 0.1)
    monkeypatch.setattr("service.grpc.stream.CONTENDED_BYTES_PER_S", 2**30)
    [request] = scored_mask(encode_image)
    async with serving(max_work_memory_bytes=30 * PIXELS) as server:
        memory = server.plane.work_memory
        async with connected(server) as channel, connected(server) as others:
            stub = EncoderServiceStub(channel)
            if rpc == "unary":
                raw: Any = channel.stream_stream("/tipserve.v1.EncoderService/SegmentImages")
                slow = raw(iter([request.segment_images.SerializeToString()]), timeout=60)
            else:
                slow = stub.Stream(iter([request]), timeout=60)
            await until(lambda: memory.num_bytes > 0)
            await asyncio.sleep(1.0)
            assert memory.num_bytes > 0, "it may go on while memory is free"
            other = EncoderServiceStub(others).SegmentImages(request.segment_images, timeout=20)
            assert (await other).model
            await until(lambda: memory.num_bytes == 0)
            # Else the core would keep the answer until the client's deadline.
            assert await slow.code() == grpc.StatusCode.UNAVAILABLE
