"""A model admits whole requests up to a cost, and knows when it is empty."""

import threading

import pytest

from service.admission import Admission
from service.call import Call
from service.errors import DeadlineExceeded, Overloaded, RequestTooLarge
from service.observability import Metrics

CALL = Call(request_id="x", deadline=10.0, clock=lambda: 0.0)


@pytest.fixture
def admission(metrics: Metrics) -> Admission:
    return Admission(100, metrics)


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


def test_a_corrected_cost_counts_and_is_given_back(admission: Admission) -> None:
    with admission.admit(10, CALL) as ticket:
        ticket.resize(100)
        with pytest.raises(Overloaded):
            admission.admit(1, CALL)
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
