"""Admission: what is taken, what is refused, who waits, and that everything is given back."""

import asyncio
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.admission import MAX_WAITING, Admission, ServerState, Ticket
from service.call import Call
from service.errors import DeadlineExceeded, Overloaded, Unavailable
from service.lanes.batching import Batcher
from service.monitoring.metrics import Metrics
from service.patch_budget import MIN_RETRY_S, PatchBudget
from tests.service.conftest import Clock

MAX_PATCHES, MAX_BYTES = 80, 100


class FakeLanes(Batcher):
    """Lanes whose health a test sets."""

    is_ready = True
    patches_per_s = 10.0

    def __init__(self) -> None:
        pass


class Gate:
    """An open admission and the patches of one model."""

    def __init__(self) -> None:
        metrics = Metrics()
        self.clock = Clock()
        self.admission = Admission(metrics, max_body_bytes=MAX_BYTES, max_work_bytes=MAX_BYTES)
        self.admission.open()
        self.budget = PatchBudget(MAX_PATCHES, metrics, FakeLanes())

    def enter(
        self, caller: str = "a", *, deadline: float = math.inf, is_stream: bool = False
    ) -> Ticket:
        call = Call(request_id="r", deadline=deadline, clock=self.clock, caller=caller)
        call.host, call.waits_for_capacity = caller, is_stream
        return self.admission.enter(call)

    async def take(self, ticket: Ticket, num_patches: int = 1, num_bytes: int = 0) -> Ticket:
        budget = self.budget
        await self.admission.take(ticket.call, budget, num_patches=num_patches, num_bytes=num_bytes)
        return ticket

    async def waiting(
        self, ticket: Ticket, num_patches: int = 1, num_bytes: int = 0
    ) -> "asyncio.Task[Ticket]":
        """A task that has begun to take."""
        task = asyncio.create_task(self.take(ticket, num_patches, num_bytes))
        await asyncio.sleep(0)
        return task

    @property
    def held(self) -> tuple[int, int, int, int]:
        """Requests, bytes of bodies, bytes of work, and patches."""
        one = self.admission
        return one.num_requests, one.num_body_bytes, one.num_work_bytes, self.budget.num_patches


@pytest.fixture
def gate() -> Gate:
    return Gate()


async def test_a_ticket_gives_everything_back_once(gate: Gate) -> None:
    left: list[str] = []
    ticket = gate.enter()
    ticket.leave = lambda: left.append("key")
    ticket.hold_body(30)
    ticket.hold_body(20)  # the most in total, not a sum
    await gate.take(ticket, 5, 40)
    assert gate.held == (1, 30, 40, 5)
    ticket.release()
    ticket.release()
    assert (gate.held, left) == ((0, 0, 0, 0), ["key"])
    assert gate.admission.wait_idle(0)


def test_bodies_are_refused_beyond_all_bytes_or_the_share_of_a_host(gate: Gate) -> None:
    first = gate.enter()
    first.hold_body(70)
    with pytest.raises(Overloaded) as caught:
        gate.enter("b").hold_body(31)
    assert (caught.value.code, caught.value.retry_after_s) == ("body_memory_full", 1.0)
    second = gate.enter()
    with pytest.raises(Overloaded):
        second.hold_body(18)  # seven times what it leaves free
    second.hold_body(17)
    gate.enter("b").hold_body(13)
    assert gate.admission.num_body_bytes == 100
    for ticket in (first, second):
        ticket.release()
    assert gate.admission.num_body_bytes == 13


async def test_bytes_are_waited_for_in_order_of_arrival(gate: Gate) -> None:
    first = await gate.take(gate.enter(), 1, 90)
    large = await gate.waiting(gate.enter("large"), 1, 60)
    small = await gate.waiting(gate.enter("small"), 1, 10)  # would fit, but came later
    nothing = await gate.take(gate.enter("no bytes"))
    assert not large.done()
    assert not small.done()
    first.release()
    for ticket in (nothing, await large, await small):
        ticket.release()
    assert gate.held == (0, 0, 0, 0)


async def test_a_request_that_waits_holds_its_body_only_and_may_leave(gate: Gate) -> None:
    first = await gate.take(gate.enter(), 1, MAX_BYTES)
    ticket = gate.enter("b")
    ticket.hold_body(10)
    leaving = await gate.waiting(ticket, 2, 5)
    staying = await gate.waiting(gate.enter("c"), 3, 5)
    assert gate.held == (3, 10, MAX_BYTES, 1)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    ticket.release()
    first.release()
    await staying
    assert gate.held == (1, 0, 5, 3)


async def test_an_image_that_needs_more_than_all_bytes_is_decoded_alone(gate: Gate) -> None:
    await gate.take(gate.enter(), 1, 10 * MAX_BYTES)
    assert gate.admission.num_work_bytes == MAX_BYTES


async def test_few_may_wait(gate: Gate) -> None:
    await gate.take(gate.enter(), 0, MAX_BYTES)
    tasks = [await gate.waiting(gate.enter(), 0, 1) for _ in range(MAX_WAITING)]
    with pytest.raises(Overloaded, match="memory for images and answers"):
        await gate.take(gate.enter(), 0, 1)
    await gate.take(gate.enter(), 0)  # it need not wait
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_one_caller_leaves_room_for_others(gate: Gate) -> None:
    while not gate.budget.is_full("a"):
        await gate.take(gate.enter("a"))
    with pytest.raises(Overloaded) as caught:
        await gate.take(gate.enter("a"))
    assert caught.value.code == "queue_full"
    assert gate.budget.num_patches == 70  # an eighth is left
    await gate.take(gate.enter("b"), 5)


async def test_a_stream_waits_for_patches_and_small_requests_do_not_starve_it(gate: Gate) -> None:
    first = await gate.take(gate.enter("a"), 60)
    stream = gate.enter("s", is_stream=True)
    waiting = await gate.waiting(stream, 40)
    with pytest.raises(Overloaded):
        await gate.take(gate.enter("b"))
    first.release()
    await waiting
    assert gate.budget.num_patches == 40
    over_half = await gate.waiting(gate.enter("s", is_stream=True))
    await gate.take(gate.enter("b"))  # streams use half of the queue
    assert not over_half.done()
    stream.release()
    await over_half


async def test_a_stream_that_waits_for_bytes_refuses_no_other(gate: Gate) -> None:
    first = await gate.take(gate.enter("a"), 1, MAX_BYTES)
    waiting = await gate.waiting(gate.enter("s", is_stream=True), 1, MAX_BYTES)
    await gate.take(gate.enter("b"))
    first.release()
    await waiting


async def test_a_deadline_that_cannot_be_met_is_refused(gate: Gate) -> None:
    await gate.take(gate.enter("a", deadline=0.1), 10)  # ten patches a second; it was idle
    with pytest.raises(DeadlineExceeded) as caught:
        await gate.take(gate.enter("b", deadline=1.5), 10)
    assert caught.value.code == "deadline_too_near"
    await gate.take(gate.enter("b", deadline=2.5), 10)
    gate.clock.now = 1.0
    with pytest.raises(DeadlineExceeded):
        await gate.take(gate.enter("b", deadline=0.5))
    assert gate.budget.retry_after_s() == pytest.approx(2.0)


async def test_a_refused_caller_waits_a_tenth_of_a_second_at_least(gate: Gate) -> None:
    assert gate.budget.retry_after_s() == MIN_RETRY_S == 0.1
    await gate.take(gate.enter("a"), 2)  # ten patches a second
    assert gate.budget.retry_after_s() == pytest.approx(0.2)


async def test_a_server_that_is_not_open_or_has_no_healthy_lane_takes_nothing(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate.admission.announce_drain()
    await gate.take(gate.enter())  # until load balancers have noticed
    monkeypatch.setattr(FakeLanes, "is_ready", False)
    with pytest.raises(Unavailable) as caught:
        await gate.take(gate.enter())
    assert caught.value.code == "unhealthy"
    gate.admission.drain()
    assert gate.admission.state is ServerState.DRAINING
    with pytest.raises(Unavailable, match="draining"):
        await gate.take(gate.enter())


asked_requests = st.lists(
    st.tuples(
        st.sampled_from("abc"), st.integers(0, 30), st.integers(0, 60), st.booleans(), st.booleans()
    ),
    max_size=30,
)


@given(asked=asked_requests, seed=st.integers(0, 1000))
def test_limits_hold_and_nothing_is_left(
    asked: list[tuple[str, int, int, bool, bool]], seed: int
) -> None:
    """Requests come, wait, are cancelled and end in any order."""

    async def run() -> None:
        gate, order = Gate(), random.Random(seed)

        async def request(caller: str, num_patches: int, num_bytes: int, is_stream: bool) -> None:
            ticket = gate.enter(caller, is_stream=is_stream)
            try:
                await gate.take(ticket, num_patches, num_bytes)
                for _ in range(order.randrange(5)):
                    await asyncio.sleep(0)
                    assert 0 <= gate.budget.num_patches <= MAX_PATCHES
                    assert 0 <= gate.admission.num_work_bytes <= MAX_BYTES
            except Overloaded:
                pass
            finally:
                ticket.release()

        tasks = []
        for caller, num_patches, num_bytes, is_stream, is_cancelled in asked:
            tasks.append(asyncio.create_task(request(caller, num_patches, num_bytes, is_stream)))
            await asyncio.sleep(0)
            if is_cancelled:
                order.choice(tasks).cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert not any(t.exception() for t in tasks if not t.cancelled()), "of another kind"
        assert gate.held == (0, 0, 0, 0)

    asyncio.run(run())
