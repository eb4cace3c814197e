"""Admission: what is taken, what is refused, who waits, and that everything is given back."""

import asyncio
import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.admission import MAX_WAITING, Admission, ServerState, Ticket
from service.call import Call
from service.errors import DeadlineExceeded, Overloaded, Unavailable
from service.lanes.batching import Batcher
from service.monitoring.metrics import Metrics
from service.patch_budget import PatchBudget
from tests.service.conftest import Clock

MAX_PATCHES, MAX_BYTES = 80, 100


class FakeLanes(Batcher):
    """Lanes whose health a test sets."""

    is_ready = True
    patches_per_s = 10.0

    def __init__(self) -> None:
        pass


@pytest.fixture
def admission() -> Admission:
    made = Admission(Metrics(), max_body_bytes=MAX_BYTES, max_work_bytes=MAX_BYTES)
    made.open()
    return made


@pytest.fixture
def budget() -> PatchBudget:
    return PatchBudget(MAX_PATCHES, Metrics(), FakeLanes())


Enter = Callable[..., Ticket]


@pytest.fixture
def enter(admission: Admission, clock: Clock) -> Enter:
    def made(caller: str = "a", *, deadline: float = math.inf, is_stream: bool = False) -> Ticket:
        call = Call(request_id="r", deadline=deadline, clock=clock, caller=caller)
        call.waits_for_capacity = is_stream
        return admission.enter(call)

    return made


def held(admission: Admission, budget: PatchBudget) -> tuple[int, int, int, int]:
    return (
        admission.num_requests,
        admission.num_body_bytes,
        admission.num_work_bytes,
        budget.num_patches,
    )


async def test_a_ticket_gives_everything_back_once(
    admission: Admission, budget: PatchBudget, enter: Enter
) -> None:
    left: list[str] = []
    ticket = enter()
    ticket.leave = lambda: left.append("key")
    ticket.hold_body(30)
    ticket.hold_body(20)  # the most in total, not a sum
    await admission.take(ticket, budget, num_patches=5, num_bytes=40)
    assert held(admission, budget) == (1, 30, 40, 5)
    ticket.release()
    ticket.release()
    assert (held(admission, budget), left) == ((0, 0, 0, 0), ["key"])
    assert admission.wait_idle(0)


async def test_bodies_over_the_limit_are_refused_and_change_nothing(
    admission: Admission, budget: PatchBudget, enter: Enter
) -> None:
    enter().hold_body(70)
    with pytest.raises(Overloaded) as caught:
        enter().hold_body(31)
    assert (caught.value.code, caught.value.retry_after_s) == ("body_memory_full", 1.0)
    assert admission.num_body_bytes == 70


async def test_bodies_of_one_host_leave_room_for_others(admission: Admission, enter: Enter) -> None:
    many = [enter() for _ in range(20)]
    for ticket in many:
        ticket.call.host = "192.0.2.1"
    for ticket in many[:17]:
        ticket.hold_body(5)
    with pytest.raises(Overloaded):
        many[17].hold_body(5)
    assert admission.num_body_bytes == 85
    other = enter()
    other.call.host = "192.0.2.2"
    other.hold_body(10)
    for ticket in [*many, other]:
        ticket.release()
    assert admission.num_body_bytes == 0
    assert not admission._bodies_of


async def test_bytes_are_waited_for_in_order_of_arrival(
    admission: Admission, budget: PatchBudget, enter: Enter
) -> None:
    first = enter()
    await admission.take(first, budget, num_patches=1, num_bytes=90)
    taken: list[str] = []

    async def take(name: str, num_bytes: int) -> Ticket:
        ticket = enter(name)
        await admission.take(ticket, budget, num_patches=1, num_bytes=num_bytes)
        taken.append(name)
        return ticket

    large = asyncio.create_task(take("large", 60))
    small = asyncio.create_task(take("small", 10))  # would fit, but came later
    await asyncio.sleep(0)
    nothing = await take("no bytes", 0)
    assert taken == ["no bytes"]
    first.release()
    tickets = [nothing, await large, await small]
    assert taken == ["no bytes", "large", "small"]
    for ticket in tickets:
        ticket.release()
    assert held(admission, budget) == (0, 0, 0, 0)


async def test_a_request_that_waits_holds_its_body_only_and_may_leave(
    admission: Admission, budget: PatchBudget, enter: Enter
) -> None:
    first, waiting, last = enter(), enter("b"), enter("c")
    await admission.take(first, budget, num_patches=1, num_bytes=MAX_BYTES)
    waiting.hold_body(10)
    leaving = asyncio.create_task(admission.take(waiting, budget, num_patches=2, num_bytes=5))
    staying = asyncio.create_task(admission.take(last, budget, num_patches=3, num_bytes=5))
    await asyncio.sleep(0)
    assert held(admission, budget) == (3, 10, MAX_BYTES, 1)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    waiting.release()
    first.release()
    await staying
    assert held(admission, budget) == (1, 0, 5, 3)


async def test_an_image_that_needs_more_than_all_bytes_is_decoded_alone(
    admission: Admission, budget: PatchBudget, enter: Enter
) -> None:
    ticket = enter()
    await admission.take(ticket, budget, num_patches=1, num_bytes=10 * MAX_BYTES)
    assert admission.num_work_bytes == MAX_BYTES


async def test_few_may_wait(admission: Admission, budget: PatchBudget, enter: Enter) -> None:
    await admission.take(enter(), budget, num_patches=0, num_bytes=MAX_BYTES)
    tasks = [
        asyncio.create_task(admission.take(enter(), budget, num_patches=0, num_bytes=1))
        for _ in range(MAX_WAITING)
    ]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="memory for images and answers"):
        await admission.take(enter(), budget, num_patches=0, num_bytes=1)
    await admission.take(enter(), budget, num_patches=0)  # it need not wait
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_one_caller_leaves_room_for_others(
    admission: Admission, budget: PatchBudget, enter: Enter
) -> None:
    while not budget.is_full("a"):
        await admission.take(enter("a"), budget, num_patches=1)
    with pytest.raises(Overloaded) as caught:
        await admission.take(enter("a"), budget, num_patches=1)
    assert caught.value.code == "queue_full"
    assert budget.num_patches == 70  # an eighth is left
    await admission.take(enter("b"), budget, num_patches=5)


async def test_a_stream_waits_for_patches_and_small_requests_do_not_starve_it(
    admission: Admission, budget: PatchBudget, enter: Enter
) -> None:
    first = enter("a")
    await admission.take(first, budget, num_patches=60)
    stream = enter("s", is_stream=True)
    waiting = asyncio.create_task(admission.take(stream, budget, num_patches=40))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await admission.take(enter("b"), budget, num_patches=1)
    first.release()
    await waiting
    assert budget.num_patches == 40
    over_half = enter("s", is_stream=True)
    waiting = asyncio.create_task(admission.take(over_half, budget, num_patches=1))
    await asyncio.sleep(0)
    await admission.take(enter("b"), budget, num_patches=1)  # streams use half of the queue
    assert not waiting.done()
    stream.release()
    await waiting


async def test_a_stream_that_waits_for_bytes_refuses_no_other(
    admission: Admission, budget: PatchBudget, enter: Enter
) -> None:
    first = enter("a")
    await admission.take(first, budget, num_patches=1, num_bytes=MAX_BYTES)
    stream = enter("s", is_stream=True)
    waiting = asyncio.create_task(
        admission.take(stream, budget, num_patches=1, num_bytes=MAX_BYTES)
    )
    await asyncio.sleep(0)
    await admission.take(enter("b"), budget, num_patches=1)
    first.release()
    await waiting


async def test_a_deadline_that_cannot_be_met_is_refused(
    admission: Admission, budget: PatchBudget, enter: Enter, clock: Clock
) -> None:
    measured = enter("a")
    await admission.take(measured, budget, num_patches=10)
    clock.now = 1.0
    measured.release()  # ten patches a second
    await admission.take(enter("a", deadline=1.1), budget, num_patches=10)  # the server was idle
    with pytest.raises(DeadlineExceeded) as caught:
        await admission.take(enter("b", deadline=2.5), budget, num_patches=10)
    assert caught.value.code == "deadline_too_near"
    await admission.take(enter("b", deadline=3.5), budget, num_patches=10)
    with pytest.raises(DeadlineExceeded):
        await admission.take(enter("b", deadline=0.5), budget, num_patches=1)
    assert budget.retry_after_s() == pytest.approx(2.0)


async def test_a_server_that_is_not_open_takes_nothing(
    admission: Admission, budget: PatchBudget, enter: Enter
) -> None:
    admission.announce_drain()
    await admission.take(enter(), budget, num_patches=1)  # until load balancers have noticed
    admission.drain()
    assert admission.state is ServerState.DRAINING
    with pytest.raises(Unavailable, match="draining"):
        await admission.take(enter(), budget, num_patches=1)


async def test_without_a_healthy_lane_nothing_is_taken(
    admission: Admission, enter: Enter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeLanes, "is_ready", False)
    budget = PatchBudget(MAX_PATCHES, Metrics(), FakeLanes())
    with pytest.raises(Unavailable) as caught:
        await admission.take(enter(), budget, num_patches=1)
    assert caught.value.code == "unhealthy"


@given(
    asked=st.lists(
        st.tuples(
            st.sampled_from("abc"),
            st.integers(0, 30),
            st.integers(0, 60),
            st.booleans(),
            st.booleans(),
        ),
        max_size=30,
    ),
    seed=st.integers(0, 1000),
)
def test_limits_hold_and_nothing_is_left(
    asked: list[tuple[str, int, int, bool, bool]], seed: int
) -> None:
    """Requests come, wait, are cancelled and end in any order."""

    async def run() -> None:
        metrics, order = Metrics(), random.Random(seed)
        admission = Admission(metrics, max_body_bytes=MAX_BYTES, max_work_bytes=MAX_BYTES)
        admission.open()
        budget = PatchBudget(MAX_PATCHES, metrics, FakeLanes())

        async def request(caller: str, num_patches: int, num_bytes: int, is_stream: bool) -> None:
            call = Call(request_id="r", deadline=math.inf, caller=caller)
            call.waits_for_capacity = is_stream
            ticket = admission.enter(call)
            try:
                await admission.take(ticket, budget, num_patches=num_patches, num_bytes=num_bytes)
                for _ in range(order.randrange(5)):
                    await asyncio.sleep(0)
                    assert 0 <= budget.num_patches <= MAX_PATCHES
                    assert 0 <= admission.num_work_bytes <= MAX_BYTES
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
        assert not any(t.exception() for t in tasks if not t.cancelled()), (
            "no request fails otherwise"
        )
        assert held(admission, budget) == (0, 0, 0, 0)

    asyncio.run(run())
