"""A model admits whole requests up to a cost, refuses what comes too late, and says when to return.

The clock and the device are the test's.
"""

import threading

import pytest

from service.call import Call
from service.errors import DeadlineExceeded, Overloaded, RequestTooLarge, Unavailable
from service.models.admission import FIRST_RETRY_S, MAX_RETRY_S, Admission
from service.monitoring.metrics import Metrics

CALL = Call(request_id="x", deadline=10.0, clock=lambda: 0.0)


class Device:
    """Lanes as the test has them: seconds that a patch takes, and seconds ahead of each level."""

    is_ready = True
    patch_s = 0.0
    ahead_s = (0.0, 0.0, 0.0)

    def done_in_s(self, cost: int, priority: int, flow: str, kind: object) -> float:
        return self.ahead_s[priority - 1] + cost * self.patch_s


class Clock:
    """Time as the test has it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def device() -> Device:
    return Device()


@pytest.fixture
def admission(metrics: Metrics, device: Device, clock: Clock) -> Admission:
    return Admission(100, metrics, device, clock)


def rejected(metrics: Metrics, reason: str) -> float | None:
    return metrics.registry.get_sample_value("tipserve_rejected_total", {"reason": reason})


def test_a_full_house_refuses_until_someone_leaves(admission: Admission, metrics: Metrics) -> None:
    with admission.admit(60, CALL):
        with pytest.raises(Overloaded) as caught:
            admission.admit(41, CALL)
        with admission.admit(40, CALL), pytest.raises(Overloaded):
            admission.check()
    assert caught.value.retry_after_s
    assert rejected(metrics, "queue_full") == 2
    with admission.admit(100, CALL):
        pass


def test_what_can_never_fit_is_too_large_not_overloaded(admission: Admission) -> None:
    with pytest.raises(RequestTooLarge):
        admission.admit(101, CALL)


def test_a_passed_deadline_is_refused(admission: Admission, metrics: Metrics) -> None:
    with pytest.raises(DeadlineExceeded):
        admission.admit(1, Call(request_id="x", deadline=1.0, clock=lambda: 1.0))
    assert rejected(metrics, "deadline") == 1


def test_a_deadline_that_cannot_be_met_is_refused_at_once(
    admission: Admission, device: Device, metrics: Metrics
) -> None:
    device.patch_s = 0.2
    with admission.admit(50, CALL):
        pass
    with pytest.raises(DeadlineExceeded, match=r"at least 10\.200 s"):
        admission.admit(51, CALL)
    assert rejected(metrics, "deadline") == 1
    assert admission.wait_idle(0)


def test_what_is_ahead_depends_on_the_callers_level(admission: Admission, device: Device) -> None:
    device.ahead_s = (1.0, 11.0, 12.0)
    urgent = Call(request_id="x", deadline=10.0, clock=lambda: 0.0, priority=1)
    with admission.admit(1, urgent), pytest.raises(DeadlineExceeded):
        admission.admit(1, CALL)


def test_nobody_is_admitted_to_a_dead_device(
    admission: Admission, device: Device, metrics: Metrics
) -> None:
    device.is_ready = False
    with pytest.raises(Unavailable) as caught:
        admission.admit(1, CALL)
    assert (caught.value.code, rejected(metrics, "unhealthy")) == ("unhealthy", 1)
    assert caught.value.retry_after_s


def test_a_corrected_cost_counts_and_is_given_back(admission: Admission) -> None:
    with admission.admit(10, CALL) as ticket:
        ticket.resize(100)
        with pytest.raises(Overloaded):
            admission.admit(1, CALL)
        ticket.resize(20)
        with admission.admit(80, CALL):
            pass
    with admission.admit(100, CALL):
        pass


@pytest.mark.parametrize(("cost", "error"), [(41, Overloaded), (101, RequestTooLarge)])
def test_a_request_that_proves_too_large_is_refused_and_takes_no_more_room(
    admission: Admission, cost: int, error: type[Exception]
) -> None:
    with admission.admit(60, CALL):
        with admission.admit(10, CALL) as ticket, pytest.raises(error):
            ticket.resize(cost)
        with admission.admit(40, CALL):
            pass
    with admission.admit(100, CALL):
        pass


def test_room_is_given_back_when_the_request_fails(admission: Admission) -> None:
    with pytest.raises(KeyError), admission.admit(100, CALL):
        raise KeyError
    assert admission.wait_idle(0)


def test_it_knows_when_nobody_is_inside(admission: Admission) -> None:
    ticket = admission.admit(1, CALL)
    assert not admission.wait_idle(0)
    threading.Thread(target=ticket.__exit__, args=(None, None, None)).start()
    assert admission.wait_idle(10)


def test_a_refused_caller_hears_when_the_backlog_will_be_gone(
    admission: Admission, clock: Clock
) -> None:
    assert admission.retry_after_s() == FIRST_RETRY_S
    with admission.admit(20, CALL):
        clock.now = 2.0  # 10 patches a second
    with admission.admit(80, CALL), pytest.raises(Overloaded) as caught:
        admission.admit(21, CALL)
    assert caught.value.retry_after_s == pytest.approx(8)
    with admission.admit(80, CALL):
        clock.now = 1000.0  # nothing has left for very long
        with admission.admit(1, CALL):
            pass
        assert admission.retry_after_s() == MAX_RETRY_S


def test_idle_time_does_not_count_as_slow(admission: Admission, clock: Clock) -> None:
    for started in (0.0, 100.0, 5000.0):
        clock.now = started
        with admission.admit(20, CALL):
            clock.now += 2.0
    with admission.admit(50, CALL):
        assert admission.retry_after_s() == pytest.approx(5)
