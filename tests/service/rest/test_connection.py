"""The middleware: deadlines, and limits on a body's bytes, memory and rate."""

import asyncio
import gzip
import random
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest
from starlette.types import Message

from service.call import Call
from service.errors import (
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    RequestTooLarge,
    TooSlow,
    UnsupportedMedia,
)
from service.monitoring.metrics import Metrics
from service.rest.connection import (
    PIECE_BYTES,
    Answer,
    Body,
    CallMiddleware,
    ClientLink,
)
from service.rest.errors import ClientLeft
from service.safety.protection import BodyMemory, BodyShare, Protection
from service.safety.refusals import RefusalPace

LIMIT_S = 20.0


class Sender:
    """An ASGI `receive`: messages with pauses between them; at the end it blocks."""

    def __init__(self, *steps: Message | float) -> None:
        self._steps = list(steps)

    async def __call__(self) -> Message:
        while self._steps:
            step = self._steps.pop(0)
            if not isinstance(step, float):
                return step
            await asyncio.sleep(step)
        await asyncio.Event().wait()
        raise AssertionError


def chunk(num_bytes: int, *, more: bool = True) -> Message:
    return {"type": "http.request", "body": b"x" * num_bytes, "more_body": more}


@pytest.fixture
def memory(metrics: Metrics) -> BodyMemory:
    return BodyMemory(100, metrics)


@pytest.fixture
def share(memory: BodyMemory) -> BodyShare:
    return memory.share()


@pytest.fixture
def protection(make_settings: Any, metrics: Metrics, memory: BodyMemory) -> Protection:
    made = Protection.from_settings(make_settings(), metrics)
    return replace(made, body_memory=memory, max_body_bytes=80, client_timeout_s=0.05)


@pytest.fixture
def make_body(protection: Protection, share: BodyShare) -> Callable[..., Body]:
    def make(
        *steps: Message | float,
        bytes_per_s: int = 1_000_000,
        limit_s: float = 60.0,
        client: ClientLink | None = None,
        **changes: Any,
    ) -> Body:
        limits = replace(protection, client_bytes_per_s=bytes_per_s, **changes)
        return Body(Sender(*steps), limits, share, limit_s, client=client)

    return make


async def test_memory_is_taken_as_bytes_arrive_and_not_when_they_are_announced(
    make_body: Callable[..., Body], memory: BodyMemory, share: BodyShare
) -> None:
    body = make_body(chunk(30), chunk(10, more=False))
    body.check_head({b"content-length": "40"})
    assert memory.num_bytes == 0
    assert len((await body())["body"]) == 30
    assert memory.num_bytes == 30
    assert len((await body())["body"]) == 10
    assert memory.num_bytes == 40
    with share:
        pass
    assert memory.num_bytes == 0


@pytest.mark.parametrize(
    ("headers", "error"),
    [
        ({b"content-length": "81"}, RequestTooLarge),
        ({b"content-length": "9" * 5000}, RequestTooLarge),
        ({b"content-length": "61"}, Overloaded),
        ({b"content-length": "1", b"content-encoding": "br"}, UnsupportedMedia),
    ],
)
async def test_a_body_is_refused_by_its_headers(
    make_body: Callable[..., Body],
    memory: BodyMemory,
    headers: dict[bytes, str],
    error: type[Exception],
) -> None:
    memory.share().hold(40)
    with pytest.raises(error):
        make_body().check_head(headers)


async def test_a_body_of_unknown_length_is_refused_when_memory_is_full(
    make_body: Callable[..., Body], memory: BodyMemory
) -> None:
    body = make_body(chunk(30), chunk(30))
    memory.share().hold(50)
    body.check_head({b"transfer-encoding": "chunked"})
    await body()
    with pytest.raises(Overloaded):
        await body()
    memory.share().hold(20)
    with pytest.raises(Overloaded):
        make_body().check_head({b"transfer-encoding": "chunked"})


def packed(encoding: str, content: bytes) -> bytes:
    return gzip.compress(content) if encoding == "gzip" else zlib.compress(content)


async def read_all(body: Body) -> bytes:
    content = b""
    while True:
        message = await body()
        content += message["body"]
        if not message["more_body"]:
            return bytes(content)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.parametrize("num_bytes", [0, 70, PIECE_BYTES, 3 * PIECE_BYTES + 1])
async def test_a_compressed_body_is_unpacked(
    protection: Protection, metrics: Metrics, encoding: str, num_bytes: int
) -> None:
    content = random.Random(0).randbytes(num_bytes)
    whole = packed(encoding, content)
    half = len(whole) // 2
    limit = 2 * num_bytes + 1000
    limits = replace(protection, max_body_bytes=limit)
    share = BodyMemory(limit, metrics).share()
    steps: list[Message] = [
        {"type": "http.request", "body": whole[:half], "more_body": True},
        {"type": "http.request", "body": whole[half:], "more_body": False},
    ]
    body = Body(Sender(*steps), limits, share, 60.0)
    body.check_head({b"content-encoding": encoding})
    assert await read_all(body) == content
    assert share.num_bytes == num_bytes


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_a_bomb_is_refused_after_its_first_pieces(
    protection: Protection, metrics: Metrics, encoding: str
) -> None:
    bomb: Message = {"type": "http.request", "body": packed(encoding, bytes(50_000_000))}
    limit = 3 * PIECE_BYTES
    for memory_bytes, error in ((10 * limit, RequestTooLarge), (PIECE_BYTES, Overloaded)):
        share = BodyMemory(memory_bytes, metrics).share()
        limits = replace(protection, max_body_bytes=limit)
        body = Body(Sender(bomb), limits, share, 60.0)
        body.check_head({b"content-encoding": encoding})
        with pytest.raises(error):
            await read_all(body)
        assert share.num_bytes <= limit


async def test_a_malformed_compressed_body_is_refused(make_body: Callable[..., Body]) -> None:
    whole = gzip.compress(b"{}")
    for broken in (b"{}", whole[:-1], whole + b"x", b"", zlib.compress(b"{}")):
        body = make_body({"type": "http.request", "body": broken, "more_body": False})
        body.check_head({b"content-encoding": "gzip"})
        with pytest.raises(InvalidRequest, match="gzip stream"):
            await read_all(body)


async def test_a_body_longer_than_announced_is_counted(make_body: Callable[..., Body]) -> None:
    body = make_body(chunk(30), chunk(51))
    body.check_head({b"content-length": "1"})
    await body()
    with pytest.raises(RequestTooLarge):
        await body()


async def test_a_body_at_the_minimum_rate_may_take_longer(make_body: Callable[..., Body]) -> None:
    steps = [step for _ in range(15) for step in (chunk(1), 0.05)]
    body = make_body(*steps, chunk(1, more=False), bytes_per_s=10, client_timeout_s=0.5)
    assert [len((await body())["body"]) for _ in range(16)] == [1] * 16


async def test_bytes_sent_fast_do_not_allow_for_silence(make_body: Callable[..., Body]) -> None:
    # At 1 byte a second, 30 bytes would allow for 30 seconds.
    body = make_body(chunk(30), bytes_per_s=1)
    await body()
    with pytest.raises(TooSlow):
        await body()


async def test_a_body_must_arrive_before_the_deadline(make_body: Callable[..., Body]) -> None:
    body = make_body(chunk(30), bytes_per_s=1, client_timeout_s=60.0, limit_s=0.05)
    await body()
    with pytest.raises(DeadlineExceeded):
        await body()


async def test_a_client_that_leaves_after_the_body_is_noticed(
    make_body: Callable[..., Body],
) -> None:
    body = make_body(chunk(1, more=False), 0.1, {"type": "http.disconnect"})
    await body()
    with pytest.raises(ClientLeft):
        await body()


async def test_a_block_is_cancelled_when_the_client_leaves_after_the_body(
    make_body: Callable[..., Body],
) -> None:
    client = ClientLink()
    body = make_body(chunk(1, more=False), client=client)

    async def handle() -> None:
        with body:
            await body()
            asyncio.get_running_loop().call_soon(client.on_left)
            await asyncio.Event().wait()

    with pytest.raises(ClientLeft):
        await handle()
    await asyncio.sleep(0)  # the task is not left in a cancelled state
    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling()


async def test_a_block_is_not_cancelled_before_the_body_is_complete_or_after_it_ended(
    make_body: Callable[..., Body],
) -> None:
    client = ClientLink()
    body = make_body(chunk(1), chunk(1, more=False), client=client)
    with body:
        await body()
        client.on_left()
        await asyncio.sleep(0)
        await body()
    client.on_left()
    await asyncio.sleep(0)


async def test_a_message_that_has_arrived_needs_no_timer(
    make_body: Callable[..., Body], monkeypatch: pytest.MonkeyPatch
) -> None:
    has_arrived = [True, False]
    client = ClientLink(has_message=lambda: has_arrived.pop(0))
    body = make_body(chunk(1), client=client, limit_s=0.05)
    timers: list[float] = []

    def timeout_at(when: float) -> asyncio.Timeout:
        timers.append(when)
        return asyncio.Timeout(when)

    monkeypatch.setattr(asyncio, "timeout_at", timeout_at)
    await body()
    assert timers == []
    with pytest.raises(DeadlineExceeded):
        await body()
    assert len(timers) == 1


async def test_another_cancellation_of_the_block_is_passed_on(
    make_body: Callable[..., Body],
) -> None:
    body = make_body(chunk(1, more=False))

    async def handle() -> None:
        with body:
            await body()
            await asyncio.Event().wait()

    task = asyncio.create_task(handle())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize(
    ("asked_ms", "deadline"), [(b"2000", 102.0), (b"5000", 105.0), (b"60000", 105.0)]
)
def test_a_client_may_shorten_the_deadline_but_not_extend_it(
    protection: Protection, asked_ms: bytes, deadline: float
) -> None:
    nothing = cast("Any", None)
    middleware = CallMiddleware(nothing, nothing, replace(protection, request_timeout_s=5.0))
    call = Call(request_id="x", started=100.0, deadline=105.0)
    middleware._apply_headers(call, {b"x-request-timeout-ms": asked_ms.decode()})
    assert call.deadline == deadline


@pytest.mark.usefixtures("no_turns")
@pytest.mark.parametrize("event", ["on_left", "send_refusal"])
@pytest.mark.parametrize("status", [401, 403, 429])
async def test_a_refusal_that_waits_holds_nothing(
    memory: BodyMemory, share: BodyShare, event: str, status: int
) -> None:
    sent: list[Message] = []
    left: list[bool] = []

    async def send(message: Message) -> None:
        sent.append(message)

    client = ClientLink()
    call = Call(request_id="x", deadline=105.0)
    answer = Answer(send, call, share, client=client, refusals=RefusalPace())
    answer.leave = lambda: left.append(True)
    share.hold(60)
    start = {"type": "http.response.start", "status": status, "headers": []}
    sending = asyncio.create_task(answer.send(start))
    await asyncio.sleep(0)
    assert memory.num_bytes == 0
    assert left == [True]
    is_waiting = client.send_refusal is not None
    assert is_waiting
    assert not sent
    getattr(client, event)()
    async with asyncio.timeout(LIMIT_S):
        await sending
    assert sent == [start]
    assert client.send_refusal is None
    answer.give_back()
    assert left == [True]


@pytest.mark.usefixtures("no_turns")
async def test_only_refusals_for_want_of_a_key_or_of_room_wait(share: BodyShare) -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    call = Call(request_id="x", deadline=105.0)
    for status in (200, 413, 503):
        answer = Answer(send, call, share, client=ClientLink(), refusals=RefusalPace())
        async with asyncio.timeout(LIMIT_S):
            await answer.send({"type": "http.response.start", "status": status})
    assert [message["status"] for message in sent] == [200, 413, 503]
