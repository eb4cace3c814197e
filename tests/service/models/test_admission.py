"""A model admits whole requests up to a cost; stream requests wait for their turn."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.call import Call
from service.errors import DeadlineExceeded, Overloaded, RequestTooLarge, Unavailable
from service.models.admission import FIRST_RETRY_S, MAX_RETRY_S, Admission, Ticket
from service.monitoring.metrics import Metrics
from tests.service.conftest import Clock

ZERO = Clock()
CALL = Call(request_id="x", deadline=10.0, clock=ZERO)


class Lanes:
    """Set by the test: seconds per patch, and seconds of work ahead of each priority."""

    is_ready = True
    patch_s = 0.0
    ahead_s = (0.0, 0.0, 0.0)

    def done_in_s(self, cost: int, priority: int, flow: str, kind: object) -> float | None:
        if not self.is_ready:
            return None
        return self.ahead_s[priority - 1] + cost * self.patch_s


@pytest.fixture
def lanes() -> Lanes:
    return Lanes()


@pytest.fixture
def admission(metrics: Metrics, lanes: Lanes, clock: Clock) -> Iterator[Admission]:
    """Capacity for 100; free again at the end of the test."""
    admission = Admission(100, metrics, lanes, clock)
    yield admission
    assert is_empty(admission)


def is_empty(admission: Admission) -> bool:
    streams = admission._streams
    numbers = (admission.cost, admission._num_admitted, streams._admitted_cost)
    return not any((*numbers, *admission._flow_costs.values())) and not streams._waiting


@asynccontextmanager
async def admitted(admission: Admission, cost: int, call: Call = CALL) -> AsyncIterator[Ticket]:
    ticket = await admission.admit(cost, call)
    try:
        yield ticket
    finally:
        ticket.release()


def stream_call(limit_s: float = 30.0) -> Call:
    call = Call(request_id="x", deadline=0.0, waits_for_capacity=True)
    call.deadline = call.started + limit_s
    return call


async def waiting(admission: Admission, cost: int) -> "asyncio.Task[Ticket]":
    """A stream request that has joined the queue, and is admitted if it fits."""
    task = asyncio.ensure_future(admission.admit(cost, stream_call()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return task


def rejected(metrics: Metrics, reason: str) -> float | None:
    return metrics.registry.get_sample_value("tipserve_rejected_total", {"reason": reason})


async def test_a_full_model_rejects_until_a_request_finishes(
    admission: Admission, metrics: Metrics
) -> None:
    async with admitted(admission, 60):
        with pytest.raises(Overloaded):
            await admission.admit(41, CALL)
        async with admitted(admission, 40):
            with pytest.raises(Overloaded):
                admission.check("")
    assert rejected(metrics, "queue_full") == 2
    async with admitted(admission, 100):
        pass


async def test_a_flow_leaves_a_part_of_the_capacity_to_the_others(admission: Admission) -> None:
    rest, grpc = (Call(request_id="x", deadline=1e9, flow=flow) for flow in ("http", "grpc"))
    async with admitted(admission, 80, rest):
        with pytest.raises(Overloaded):
            await admission.admit(9, rest)
        async with admitted(admission, 7, rest):
            assert admission.is_full("http")
            assert not admission.is_full("grpc")
            async with admitted(admission, 12, grpc):
                assert admission.is_full("grpc")
    async with admitted(admission, 100, grpc):
        pass


async def test_two_flows_leave_a_part_of_the_capacity_to_a_third(admission: Admission) -> None:
    calls = {flow: Call(request_id="x", deadline=1e9, flow=flow) for flow in ("one", "two")}
    async with AsyncExitStack() as stack:
        for flow, call in calls.items():
            while not admission.is_full(flow):
                await stack.enter_async_context(admitted(admission, 1, call))
        assert 90 < admission.cost < 100
        assert not admission.is_full("three")


async def test_a_request_above_the_whole_capacity_is_too_large(admission: Admission) -> None:
    for call in (CALL, stream_call()):
        with pytest.raises(RequestTooLarge):
            await admission.admit(101, call)


async def test_a_deadline_that_has_passed_or_cannot_be_met_is_rejected_at_once(
    admission: Admission, lanes: Lanes, metrics: Metrics
) -> None:
    with pytest.raises(DeadlineExceeded):
        await admission.admit(1, Call(request_id="x", deadline=1.0, clock=lambda: 1.0))
    lanes.patch_s = 0.2
    async with admitted(admission, 50):
        pass
    with pytest.raises(DeadlineExceeded, match=r"at least 10\.200 s"):
        await admission.admit(51, CALL)
    lanes.ahead_s = (1.0, 11.0, 12.0)  # by priority
    async with admitted(admission, 1, Call(request_id="x", deadline=10.0, clock=ZERO, priority=1)):
        with pytest.raises(DeadlineExceeded):
            await admission.admit(1, CALL)
    assert rejected(metrics, "deadline") == 3


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_failed_device_admits_no_request(
    admission: Admission, lanes: Lanes, metrics: Metrics, is_stream: bool
) -> None:
    lanes.is_ready = False
    with pytest.raises(Unavailable) as caught:
        await admission.admit(1, stream_call() if is_stream else CALL)
    assert (caught.value.code, rejected(metrics, "unhealthy")) == ("unhealthy", 1)
    assert caught.value.retry_after_s


async def test_a_corrected_cost_counts_until_the_ticket_is_released(admission: Admission) -> None:
    async with admitted(admission, 10) as ticket:
        assert ticket.resize(100)
        with pytest.raises(Overloaded):
            await admission.admit(1, CALL)
        assert ticket.resize(20)
        async with admitted(admission, 80):
            pass
        ticket.release()
        assert not ticket.resize(50)
        assert is_empty(admission)


@pytest.mark.parametrize(("cost", "error"), [(41, Overloaded), (101, RequestTooLarge)])
async def test_a_request_that_proves_too_large_is_rejected_and_keeps_its_old_cost(
    admission: Admission, cost: int, error: type[Exception]
) -> None:
    async with admitted(admission, 60):
        async with admitted(admission, 10) as ticket:
            with pytest.raises(error):
                ticket.resize(cost)
            assert admission.cost == 70
        async with admitted(admission, 40):
            pass


async def test_retry_after_is_the_backlog_at_the_measured_throughput(
    admission: Admission, clock: Clock
) -> None:
    assert admission.retry_after_s() == FIRST_RETRY_S
    async with admitted(admission, 20):
        clock.now = 2.0  # 10 patches a second
    async with admitted(admission, 80):
        with pytest.raises(Overloaded) as caught:
            await admission.admit(21, CALL)
    assert caught.value.retry_after_s == pytest.approx(8)
    async with admitted(admission, 80):
        clock.now = 1000.0  # nothing has finished for very long
        async with admitted(admission, 1):
            pass
        assert admission.retry_after_s() == MAX_RETRY_S


async def test_idle_time_does_not_lower_the_throughput(admission: Admission, clock: Clock) -> None:
    for started in (0.0, 100.0, 5000.0):
        clock.now = started
        async with admitted(admission, 20):
            clock.now += 2.0
    async with admitted(admission, 50):
        assert admission.retry_after_s() == pytest.approx(5)


async def test_stream_requests_are_admitted_in_order_as_capacity_is_freed(
    admission: Admission,
) -> None:
    first = await admission.admit(30, stream_call())
    large, small = await waiting(admission, 40), await waiting(admission, 10)
    assert not large.done()
    assert not small.done(), "a small request does not overtake a large one"
    first.release()
    for ticket in await asyncio.gather(large, small):
        ticket.release()


async def test_half_of_the_capacity_is_for_requests_that_cannot_wait(admission: Admission) -> None:
    tickets = [await admission.admit(25, stream_call()) for _ in range(2)]
    late = await waiting(admission, 25)
    tickets.append(await admission.admit(50, CALL))
    for ticket in tickets:
        ticket.release()
    (await late).release()
    # A larger stream request is admitted if it is alone.
    small = await admission.admit(10, stream_call())
    large = await waiting(admission, 90)
    assert not large.done()
    small.release()
    (await large).release()


async def test_free_capacity_is_reserved_for_the_first_waiter(admission: Admission) -> None:
    tickets = [await admission.admit(45, CALL) for _ in range(2)]
    late = await waiting(admission, 50)
    with pytest.raises(Overloaded):
        await admission.admit(10, CALL)  # it fits, and would keep the waiter out for ever
    tickets[0].release()
    (await late).release()
    tickets[1].release()


async def test_capacity_that_a_request_does_not_need_goes_to_the_next(admission: Admission) -> None:
    first = await admission.admit(50, stream_call())
    late = await waiting(admission, 20)
    assert not late.done()
    assert first.resize(30)
    (await late).release()
    first.release()


async def test_a_deadline_ends_the_wait_and_blocks_no_other_waiter(
    admission: Admission, metrics: Metrics
) -> None:
    first = await admission.admit(40, stream_call())
    large = asyncio.ensure_future(admission.admit(50, stream_call(0.05)))
    await asyncio.sleep(0)
    small = await waiting(admission, 10)
    with pytest.raises(DeadlineExceeded):
        await large
    (await small).release()
    first.release()
    assert rejected(metrics, "deadline") == 1


async def test_a_request_cancelled_while_it_is_admitted_releases_its_capacity(
    admission: Admission,
) -> None:
    first = await admission.admit(50, stream_call())
    late = await waiting(admission, 50)
    first.release()  # the wake-up is on its way
    late.cancel()
    with pytest.raises(asyncio.CancelledError):
        await late


@pytest.mark.parametrize("is_cancelled", [False, True])
async def test_a_stream_request_that_needs_more_releases_its_capacity_and_waits_again(
    admission: Admission, metrics: Metrics, is_cancelled: bool
) -> None:
    other = await admission.admit(60, CALL)
    ticket = await admission.admit(10, stream_call())
    assert not ticket.resize(45)
    again = asyncio.ensure_future(ticket.wait_for(45))
    await asyncio.sleep(0)
    assert (admission.cost, again.done()) == (60, False)
    if is_cancelled:
        again.cancel()
        await asyncio.gather(again, return_exceptions=True)
        ticket.release()
        assert admission.cost == 60
    other.release()
    if not is_cancelled:
        await again
        assert (admission.cost, ticket.cost) == (45, 45)
        ticket.release()
    assert not rejected(metrics, "queue_full")


@settings(max_examples=60, deadline=None)
@given(
    costs=st.lists(st.tuples(st.booleans(), st.integers(1, 100)), min_size=1, max_size=40),
    seed=st.integers(0, 1000),
)
async def test_capacity_is_never_exceeded_and_every_stream_request_is_admitted(
    costs: list[tuple[bool, int]], seed: int
) -> None:
    admission = Admission(100, Metrics(), Lanes())
    turns = random.Random(seed)
    most = 0

    async def visit(is_stream: bool, cost: int) -> bool:
        nonlocal most
        call = stream_call()
        call.waits_for_capacity = is_stream
        try:
            ticket = await admission.admit(cost, call)
        except Overloaded:
            return False
        most = max(most, admission.cost)
        for _ in range(turns.randrange(5)):
            await asyncio.sleep(0)
        ticket.release()
        return True

    was_admitted = await asyncio.gather(*(visit(*cost) for cost in costs))
    assert most <= 100
    assert all(done for done, (is_stream, _) in zip(was_admitted, costs, strict=True) if is_stream)
    assert is_empty(admission)
