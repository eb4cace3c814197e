"""Who may wait comes in by turns, up to half of the room, and leaves the other half to others."""

import asyncio
import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.call import Call
from service.errors import DeadlineExceeded, Overloaded, RequestTooLarge, Unavailable
from service.models.admission import Admission, Ticket
from service.monitoring.metrics import Metrics

LONG_S = 30.0


class Device:
    """Lanes that take no time."""

    is_ready = True

    def done_in_s(self, cost: int, priority: int, flow: str, kind: object) -> float:
        return 0.0


def make_call(limit_s: float = LONG_S) -> Call:
    call = Call(request_id="x", deadline=0.0, waits_for_capacity=True)
    call.deadline = call.started + limit_s
    return call


@pytest.fixture
def admission(metrics: Metrics) -> Iterator[Admission]:
    """Room for 100; empty again at the end of the test."""
    admission = Admission(100, metrics, Device())
    yield admission
    assert (admission._cost, admission._num_inside, admission._patient._cost) == (0, 0, 0)
    assert not admission._patient._waiting


def leave(ticket: Ticket) -> None:
    ticket.__exit__(None, None, None)


async def waiting(admission: Admission, cost: int) -> "asyncio.Task[Ticket]":
    """One who has joined the line, and is in where there is room."""
    task = asyncio.ensure_future(admission.admit_patiently(cost, make_call()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return task


async def test_they_come_in_by_turns_as_room_is_free(admission: Admission) -> None:
    first = await admission.admit_patiently(50, make_call())
    second, third = await waiting(admission, 30), await waiting(admission, 20)
    assert not second.done()
    assert not third.done()
    leave(first)
    for ticket in await asyncio.gather(second, third):
        leave(ticket)


async def test_the_small_do_not_overtake_the_large(admission: Admission) -> None:
    first = await admission.admit_patiently(30, make_call())
    large, small = await waiting(admission, 40), await waiting(admission, 10)
    assert not small.done()
    leave(first)
    for ticket in await asyncio.gather(large, small):
        leave(ticket)


async def test_half_is_for_those_who_cannot_wait(admission: Admission) -> None:
    inside = [await admission.admit_patiently(25, make_call()) for _ in range(2)]
    late = await waiting(admission, 25)
    inside.append(admission.admit(50, make_call()))
    with pytest.raises(Overloaded):
        admission.admit(1, make_call())
    for ticket in inside:
        leave(ticket)
    leave(await late)


async def test_what_is_free_goes_to_the_first_in_line_before_newcomers(
    admission: Admission,
) -> None:
    inside = [admission.admit(45, make_call()) for _ in range(2)]
    late = await waiting(admission, 50)
    with pytest.raises(Overloaded):
        admission.admit(10, make_call())  # it would fit, and so keep the other out for ever
    leave(inside[0])
    leave(await late)
    leave(inside[1])


async def test_what_a_request_turns_out_not_to_need_lets_the_next_in(admission: Admission) -> None:
    first = await admission.admit_patiently(50, make_call())
    late = await waiting(admission, 20)
    assert not late.done()
    first.resize(30)
    second = await late
    leave(first)
    leave(second)


async def test_one_that_is_larger_than_half_comes_in_alone(admission: Admission) -> None:
    first = await admission.admit_patiently(10, make_call())
    large = await waiting(admission, 90)
    assert not large.done()
    leave(first)
    leave(await large)
    with pytest.raises(RequestTooLarge):
        await admission.admit_patiently(101, make_call())


async def test_a_deadline_ends_the_wait_and_nobody_is_kept_behind(
    admission: Admission, metrics: Metrics
) -> None:
    first = await admission.admit_patiently(40, make_call())
    large = asyncio.ensure_future(admission.admit_patiently(50, make_call(0.05)))
    await asyncio.sleep(0)
    small = await waiting(admission, 10)
    with pytest.raises(DeadlineExceeded):
        await large
    leave(await small)
    leave(first)
    labels = {"reason": "deadline"}
    assert metrics.registry.get_sample_value("tipserve_rejected_total", labels) == 1


async def test_who_hangs_up_while_being_let_in_leaves_the_room(admission: Admission) -> None:
    first = await admission.admit_patiently(50, make_call())
    late = await waiting(admission, 50)
    leave(first)  # the wake-up is on its way
    late.cancel()
    with pytest.raises(asyncio.CancelledError):
        await late


async def test_one_that_needs_more_comes_again(admission: Admission, metrics: Metrics) -> None:
    inside = admission.admit(60, make_call())
    ticket = await admission.admit_patiently(10, make_call())
    with pytest.raises(Overloaded):
        ticket.resize(45)
    assert (ticket.cost, ticket.wanted) == (10, 45)
    ticket.resize(40)
    ticket.resize(20)
    leave(ticket)
    leave(inside)
    labels = {"reason": "queue_full"}
    assert not metrics.registry.get_sample_value("tipserve_rejected_total", labels)


async def test_nobody_waits_for_a_dead_device(
    admission: Admission, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Device, "is_ready", False)
    with pytest.raises(Unavailable):
        await admission.admit_patiently(1, make_call())


@settings(max_examples=60, deadline=None)
@given(
    costs=st.lists(st.tuples(st.booleans(), st.integers(1, 100)), min_size=1, max_size=40),
    seed=st.integers(0, 1000),
)
async def test_the_room_is_never_exceeded_and_everybody_patient_comes_in(
    costs: list[tuple[bool, int]], seed: int
) -> None:
    admission = Admission(100, Metrics(), Device())
    turns = random.Random(seed)
    most = 0

    async def visit(is_patient: bool, cost: int) -> bool:
        nonlocal most
        try:
            if is_patient:
                ticket = await admission.admit_patiently(cost, make_call())
            else:
                ticket = admission.admit(cost, make_call())
        except Overloaded:
            return False
        most = max(most, admission._cost)
        for _ in range(turns.randrange(5)):
            await asyncio.sleep(0)
        leave(ticket)
        return True

    came_in = await asyncio.gather(*(visit(*cost) for cost in costs))
    assert most <= 100
    assert all(came for came, (is_patient, _) in zip(came_in, costs, strict=True) if is_patient)
    assert (admission._cost, admission._patient._cost) == (0, 0)
