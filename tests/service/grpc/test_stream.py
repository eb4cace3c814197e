"""A stream of requests: in order, bounded, and with nothing left behind however it ends."""

import asyncio
from collections.abc import Awaitable, Callable

import grpc
import pytest

from service.grpc.stream import AnsweredStream, Item
from service.monitoring.metrics import Metrics
from service.safety.protection import BodyMemory

LIMIT_S = 20.0
MAX_SIDE_BY_SIDE = 4


class FakeContext:
    """Gives what is put in, and keeps what is written."""

    def __init__(self, *messages: bytes, is_complete: bool = True) -> None:
        self.written: list[bytes] = []
        self.num_read = 0
        self._messages: asyncio.Queue[object] = asyncio.Queue()
        for message in messages:
            self._messages.put_nowait(message)
        if is_complete:
            self._messages.put_nowait(grpc.aio.EOF)

    async def read(self) -> object:
        await asyncio.sleep(0)  # as the core does
        message = await self._messages.get()
        self.num_read += 1
        return message

    async def write(self, message: bytes) -> None:
        self.written.append(message)


def stream_over(
    context: FakeContext,
    answer: Callable[[bytes], Awaitable[bytes]],
    leaving: asyncio.Event | None = None,
    memory: BodyMemory | None = None,
    max_requests: int = MAX_SIDE_BY_SIDE,
) -> AnsweredStream:
    async def answer_item(item: Item) -> bytes:
        return await answer(item.raw)

    return AnsweredStream(
        context,
        answer_item,
        memory=memory or BodyMemory(1000, Metrics()),
        max_requests=max_requests,
        renew=lambda: None,
        leaving=leaving or asyncio.Event(),
    )


async def turns() -> None:
    for _ in range(20 * MAX_SIDE_BY_SIDE):
        await asyncio.sleep(0)


async def test_answers_keep_the_order_of_requests() -> None:
    released = {bytes([n]): asyncio.Event() for n in range(5)}

    async def answer(raw: bytes) -> bytes:
        await released[raw].wait()
        return raw * 2

    context = FakeContext(*released)
    running = asyncio.ensure_future(stream_over(context, answer).run())
    for raw in reversed(released):
        await turns()
        assert not context.written
        released[raw].set()
    assert await asyncio.wait_for(running, LIMIT_S)
    assert context.written == [raw * 2 for raw in released]


async def test_no_more_is_read_than_is_being_answered() -> None:
    release = asyncio.Event()

    async def answer(raw: bytes) -> bytes:
        await release.wait()
        return raw

    context = FakeContext(*[b"x"] * (3 * MAX_SIDE_BY_SIDE))
    running = asyncio.ensure_future(stream_over(context, answer).run())
    await turns()
    assert context.num_read == MAX_SIDE_BY_SIDE
    release.set()
    assert await asyncio.wait_for(running, LIMIT_S)
    assert len(context.written) == 3 * MAX_SIDE_BY_SIDE


async def test_a_dropped_stream_cancels_all_that_it_asked_for() -> None:
    ended: list[bytes] = []

    async def answer(raw: bytes) -> bytes:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(raw)
        return raw

    context = FakeContext(b"a", b"b", is_complete=False)
    running = asyncio.ensure_future(stream_over(context, answer).run())
    await turns()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert sorted(ended) == [b"a", b"b"]
    assert len(asyncio.all_tasks()) == 1


async def test_a_server_that_leaves_answers_what_it_has_read() -> None:
    leaving, release = asyncio.Event(), asyncio.Event()

    async def answer(raw: bytes) -> bytes:
        await release.wait()
        return raw

    context = FakeContext(b"a", b"b", is_complete=False)
    running = asyncio.ensure_future(stream_over(context, answer, leaving).run())
    await turns()
    leaving.set()
    await turns()
    assert not running.done()
    release.set()
    assert await asyncio.wait_for(running, LIMIT_S) is False
    assert context.written == [b"a", b"b"]
    assert len(asyncio.all_tasks()) == 1


async def test_a_broken_answer_ends_the_stream_and_the_rest_of_it() -> None:
    async def answer(raw: bytes) -> bytes:
        if raw == b"a":
            raise RuntimeError("broken")
        await asyncio.Event().wait()
        return raw

    context = FakeContext(b"a", b"b", is_complete=False)
    with pytest.raises(RuntimeError, match="broken"):
        await asyncio.wait_for(stream_over(context, answer).run(), LIMIT_S)
    assert len(asyncio.all_tasks()) == 1


async def test_a_full_memory_holds_up_reading_and_is_given_back() -> None:
    release = asyncio.Event()

    async def answer(raw: bytes) -> bytes:
        await release.wait()
        return raw

    memory = BodyMemory(50, Metrics())
    context = FakeContext(*[b"x" * 20] * 9)
    running = asyncio.ensure_future(stream_over(context, answer, memory=memory).run())
    await turns()
    assert (context.num_read, memory.num_bytes) == (3, 40)  # the third waits
    release.set()
    assert await asyncio.wait_for(running, LIMIT_S)
    assert (len(context.written), memory.num_bytes) == (9, 0)


@pytest.mark.parametrize("num_turns", [0, 1, 2, 50])
async def test_who_leaves_at_any_moment_leaves_no_memory_taken(num_turns: int) -> None:
    async def answer(raw: bytes) -> bytes:
        await asyncio.Event().wait()
        return raw

    memory = BodyMemory(50, Metrics())
    context = FakeContext(*[b"x" * 20] * 9)
    running = asyncio.ensure_future(stream_over(context, answer, memory=memory).run())
    for _ in range(num_turns):
        await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert memory.num_bytes == 0
    assert len(asyncio.all_tasks()) == 1


async def test_answers_that_wait_for_an_earlier_one_hold_up_reading(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.grpc.stream.MAX_UNSENT_BYTES", 10)
    release = asyncio.Event()

    async def answer(raw: bytes) -> bytes:
        if raw == b"first":
            await release.wait()
        return b"answer"

    context = FakeContext(b"first", *[b"x"] * 40)
    running = asyncio.ensure_future(stream_over(context, answer, max_requests=100).run())
    await turns()
    assert context.num_read < 10
    release.set()
    assert await asyncio.wait_for(running, LIMIT_S)
    assert len(context.written) == 41
