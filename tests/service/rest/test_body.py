"""A body as it comes: its bytes, its memory and its pace are bounded."""

import asyncio
from collections.abc import Callable

import pytest

from service.errors import Overloaded, RequestTooLarge, TooSlow, UnsupportedMedia
from service.monitoring.metrics import Metrics
from service.rest.connection import Body, BodyLimits
from service.rest.direct import Message
from service.rest.errors import ClientLeft
from service.safety.protection import BodyMemory, BodyShare


class Sender:
    """An ASGI `receive`: messages with waits in between; at the end it waits for ever."""

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
def make_body(memory: BodyMemory, share: BodyShare) -> Callable[..., Body]:
    def make(*steps: Message | float, bytes_per_s: int = 1_000_000) -> Body:
        limits = BodyLimits(max_bytes=80, memory=memory, timeout_s=0.05, bytes_per_s=bytes_per_s)
        return Body(Sender(*steps), limits, share)

    return make


async def test_what_was_announced_is_held_before_it_comes(
    make_body: Callable[..., Body], memory: BodyMemory, share: BodyShare
) -> None:
    body = make_body(chunk(30), chunk(10, more=False))
    body.check_head({b"content-length": "40"})
    assert memory.num_bytes == 40
    assert [len((await body())["body"]) for _ in range(2)] == [30, 10]
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
        ({b"content-length": "1", b"content-encoding": "gzip"}, UnsupportedMedia),
    ],
)
async def test_the_head_alone_may_be_refused(
    make_body: Callable[..., Body],
    memory: BodyMemory,
    headers: dict[bytes, str],
    error: type[Exception],
) -> None:
    memory.share().hold(40)
    with pytest.raises(error):
        make_body().check_head(headers)


async def test_a_body_of_unknown_length_waits_at_a_full_door(
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


async def test_more_than_was_announced_is_counted(make_body: Callable[..., Body]) -> None:
    body = make_body(chunk(30), chunk(51))
    body.check_head({b"content-length": "1"})
    await body()
    with pytest.raises(RequestTooLarge):
        await body()


async def test_a_body_that_stops_is_too_slow(make_body: Callable[..., Body]) -> None:
    body = make_body(chunk(30))
    await body()
    with pytest.raises(TooSlow, match="1000000 bytes a second"):
        await body()


async def test_a_body_that_keeps_its_pace_may_take_longer(make_body: Callable[..., Body]) -> None:
    # At 1 byte a second, 30 bytes allow for 30 seconds more.
    body = make_body(chunk(30), 0.1, chunk(1, more=False), bytes_per_s=1)
    assert [len((await body())["body"]) for _ in range(2)] == [30, 1]


async def test_after_the_body_only_leaving_is_waited_for(make_body: Callable[..., Body]) -> None:
    body = make_body(chunk(1, more=False), 0.1, {"type": "http.disconnect"})
    await body()
    with pytest.raises(ClientLeft):
        await body()
