"""Few messages are received at once, callers take turns, and one that stalls gives up its place."""

import asyncio
import math
from typing import Any

import pytest

from service.errors import Overloaded
from service.grpc.receiving import ReceivePlaces, max_caller_bytes
from service.monitoring.metrics import Metrics
from service.settings import Settings
from tests.service.conftest import sample

LIMIT_S = 20.0


class FakeContext:
    """An RPC of a peer, whose message arrives when the test says so."""

    def __init__(self, host: str = "10.0.0.1", port: int = 1) -> None:
        self._peer = f"ipv4:{host}:{port}"
        self.message: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.is_read = False

    def peer(self) -> str:
        return self._peer

    async def read(self) -> Any:
        self.is_read = True
        return await self.message


def places(number: int = 2, max_waiting: int = 100, stall_s: float = LIMIT_S) -> ReceivePlaces:
    return ReceivePlaces(
        number, max_waiting, Metrics(), max_stall_s=stall_s, max_wait_s=100 * LIMIT_S
    )


async def start(shared: ReceivePlaces, *contexts: FakeContext) -> list["asyncio.Task[Any]"]:
    """Read from each of them, in tasks that have begun."""
    tasks = [asyncio.ensure_future(shared.read(context)) for context in contexts]
    await turns()
    return tasks


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def stop(tasks: list["asyncio.Task[Any]"]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_message_is_received_only_in_a_place() -> None:
    contexts = [FakeContext() for _ in range(5)]
    tasks = await start(places(2), *contexts)
    assert [context.is_read for context in contexts] == [True, True, False, False, False]
    contexts[1].message.set_result(b"a message")
    assert await tasks[1] == b"a message"
    await turns()
    assert [context.is_read for context in contexts] == [True, True, True, False, False]
    await stop(tasks)


async def test_hosts_take_turns_and_so_do_the_connections_of_a_host() -> None:
    greedy = [FakeContext("10.0.0.1", port=1) for _ in range(4)]
    contexts = [*greedy, FakeContext("10.0.0.1", port=2), FakeContext("10.0.0.2")]
    tasks = await start(places(1), *contexts)
    order: list[int] = []
    while len(order) < len(contexts):
        (receiving,) = (n for n, c in enumerate(contexts) if c.is_read and n not in order)
        order.append(receiving)
        contexts[receiving].message.set_result(b"")
        await turns()
    assert order == [0, 1, 5, 4, 2, 3]
    await asyncio.gather(*tasks)


async def test_a_message_that_stalls_is_refused_only_while_others_wait() -> None:
    stalled, alone, waiting = FakeContext(), FakeContext("10.0.0.2"), FakeContext("10.0.0.3")
    shared = places(2, stall_s=0.01)
    tasks = await start(shared, stalled, alone)
    await asyncio.sleep(0.05)
    assert not any(task.done() for task in tasks)
    tasks += await start(shared, waiting)
    with pytest.raises(Overloaded, match="did not arrive in time") as caught:
        await asyncio.wait_for(tasks[0], LIMIT_S)
    assert caught.value.code == "message_too_slow"
    assert waiting.is_read
    await asyncio.sleep(0.05)
    assert not tasks[1].done()
    await stop(tasks)


async def test_the_host_with_most_places_gives_one_up() -> None:
    contexts = [FakeContext("10.0.0.1"), FakeContext("10.0.0.2"), FakeContext("10.0.0.2")]
    shared = places(3, stall_s=0.01)
    tasks = await start(shared, *contexts, FakeContext("10.0.0.3"))
    with pytest.raises(Overloaded):
        await asyncio.wait_for(tasks[1], LIMIT_S)
    assert not tasks[0].done()
    await stop(tasks)


async def test_an_idle_stream_gives_its_place_up_before_one_with_answers_to_send() -> None:
    busy, idle, other = FakeContext(port=1), FakeContext(port=2), FakeContext(port=3)
    shared = places(2, stall_s=0.01)
    reading = asyncio.ensure_future(shared.read(busy, lambda: True))
    await turns()
    tasks = await start(shared, idle, other)
    with pytest.raises(Overloaded):
        await asyncio.wait_for(tasks[0], LIMIT_S)
    assert not reading.done()
    assert other.is_read
    await stop([reading, *tasks])


async def test_too_many_waiting_messages_refuse_those_of_the_connection_with_most() -> None:
    shared = places(1, max_waiting=3)
    contexts = [FakeContext(port=1) for _ in range(4)]
    tasks = await start(shared, *contexts, FakeContext(port=2))
    with pytest.raises(Overloaded) as caught:
        await asyncio.wait_for(tasks[3], LIMIT_S)
    assert caught.value.code == "too_many_messages"
    assert [task.done() for task in tasks] == [False, False, False, True, False]
    await stop(tasks)


async def test_a_host_without_a_place_gets_the_reserved_one() -> None:
    shared = ReceivePlaces(3, 100, Metrics(), num_reserved=1)
    greedy = [FakeContext("10.0.0.1", port) for port in range(4)]
    others = [FakeContext("10.0.0.2", port) for port in range(2)]
    tasks = await start(shared, *greedy, *others)
    assert [one.is_read for one in greedy] == [True, True, False, False]
    assert [one.is_read for one in others] == [True, False]
    others[0].message.set_result(b"")
    await turns()
    assert [one.is_read for one in greedy] == [True, True, False, False]
    assert others[1].is_read
    greedy[0].message.set_result(b"")
    await turns()
    assert not greedy[2].is_read, "the free place is reserved"
    others[1].message.set_result(b"")
    await turns()
    assert [one.is_read for one in greedy] == [True, True, True, False]
    await stop(tasks)


async def test_a_message_of_the_connection_with_most_is_refused_before_it_waits() -> None:
    shared = places(1, max_waiting=2)
    tasks = await start(shared, *(FakeContext(port=port) for port in range(3)))
    reading = asyncio.ensure_future(shared.read(FakeContext(port=4)))
    await asyncio.sleep(0)
    assert reading.done()
    assert isinstance(reading.exception(), Overloaded)
    await stop(tasks)


async def test_a_message_that_is_refused_and_cancelled_at_once_frees_no_place() -> None:
    shared = places(1, max_waiting=2)
    contexts = [FakeContext("10.0.0.1", port=1) for _ in range(3)]
    tasks = await start(shared, *contexts)
    other = asyncio.ensure_future(shared.read(FakeContext("10.0.0.2")))
    other.add_done_callback(lambda _: None)
    await asyncio.sleep(0)  # it has refused the last one, which has not noticed yet
    tasks[2].cancel()
    await turns()
    assert tasks[2].cancelled()
    assert not contexts[1].is_read
    await stop([*tasks, other])


async def test_messages_are_refused_at_the_rate_of_the_longest_queue() -> None:
    loop = asyncio.get_running_loop()
    refused: list[float] = [loop.time()]
    shared = ReceivePlaces(2, 1000, Metrics(), max_stall_s=LIMIT_S, max_wait_s=0.5)
    tasks = await start(shared, *(FakeContext(port=port) for port in range(50)))
    for task in tasks:
        task.add_done_callback(lambda _: refused.append(loop.time()))
    await asyncio.wait(tasks[:48], timeout=LIMIT_S)
    assert len(refused) == 1 + 48
    # The last waits for 48 times 1/48 of the limit. If the rate followed the queue, the second half
    # would take more than five times as long as the first.
    assert refused[48] - refused[24] < 3 * (refused[24] - refused[0])
    await stop(tasks)


async def test_cancelled_rpcs_leave_their_places_and_turns() -> None:
    shared = places(1)
    contexts = [FakeContext() for _ in range(4)]
    tasks = await start(shared, *contexts)
    tasks[1].cancel()
    contexts[0].message.set_result(b"")
    tasks[2].cancel()
    await turns()
    assert contexts[3].is_read
    tasks[3].cancel()
    await stop(tasks)
    last = FakeContext()
    last.message.set_result(b"free")
    assert await asyncio.wait_for(shared.read(last), LIMIT_S) == b"free"


async def test_refused_messages_are_counted() -> None:
    metrics = Metrics()
    shared = ReceivePlaces(1, 1, metrics)
    tasks = await start(shared, *(FakeContext() for _ in range(3)))
    assert sample(metrics, "rejected_total", reason="too_many_messages") == 1
    await stop(tasks)


def test_the_bound_of_memory_follows_the_settings() -> None:
    given = Settings(
        model=("bundled", "bundled-student"),
        pool_threads=3,
        lanes=2,
        max_body_memory_bytes=2**28,
        max_request_bytes=2**25,
        max_concurrent_rpcs=512,
        stream_window_bytes=2**19,
        max_image_pixels=2**24,
        max_work_memory_bytes=2**27,
        max_queue_patches=2**14,
    )
    # 8 + 32 + 2 messages of 32 MiB, 832 windows twice, 256 MiB of messages and as many of copies,
    # small images in 3 + 2 * 2 threads, 128 MiB of larger ones and of answers, and the queues of
    # two models with 3 bytes for each pixel of patches of 32 x 32.
    others = 2 * 2**28 + 7 * 2**22 + 2**27 + 2 * 2**14 * 3 * 32**2
    assert max_caller_bytes(given) == 42 * 2**25 + 832 * 2 * 2**19 + others
    large = given.model_copy(update={"max_image_pixels": 2**25})  # one takes 4.4 bytes a pixel
    more = math.ceil(4.4 * 2**25) - 2**27
    assert max_caller_bytes(large) == max_caller_bytes(given) + more
    many = Settings(max_body_memory_bytes=2**28, max_request_bytes=2**28)
    assert many.num_receive_places == 2
